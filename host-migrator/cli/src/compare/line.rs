// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A line between two machines that can be cut: it passes on what either side sends.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use parking_lot::Mutex;

use super::CompareError;

/// Bytes that are passed on at once.
const CHUNK: usize = 64 << 10;

/// A line to an address. It passes nothing on after it was cut.
#[derive(Debug)]
pub struct Line {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    is_cut: bool,
    sockets: Vec<TcpStream>,
}

impl Line {
    /// A line to `address`, a TCP address as machines write it.
    pub fn to(address: &str) -> Result<Self, CompareError> {
        let failed = |source| CompareError::Io {
            what: "cannot make a line between the machines",
            source,
        };
        let to = address.trim_start_matches("tcp:");
        let to: SocketAddr =
            (to.parse()).map_err(|error| failed(io::Error::other(format!("{to}: {error}"))))?;
        let listener = TcpListener::bind("127.0.0.1:0").map_err(failed)?;
        let line = Self {
            address: listener.local_addr().map_err(failed)?,
            state: Arc::default(),
        };
        let state = Arc::clone(&line.state);
        let accept = move || {
            for near in listener.incoming() {
                if state.lock().is_cut || near.and_then(|near| join(near, to, &state)).is_err() {
                    return;
                }
            }
        };
        thread::Builder::new().spawn(accept).map_err(failed)?;
        Ok(line)
    }

    /// Where the line begins.
    pub fn address(&self) -> String {
        format!("tcp:{}", self.address)
    }

    /// Cuts it. What is on it is lost.
    pub fn cut(&self) {
        let mut state = self.state.lock();
        state.is_cut = true;
        for socket in state.sockets.drain(..) {
            // It may have ended by itself.
            let _ = socket.shutdown(Shutdown::Both);
        }
        drop(state);
        // The thread that accepts looks once more.
        let _ = TcpStream::connect(self.address);
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.cut();
    }
}

/// Passes on what comes from `near`, and what comes back.
fn join(near: TcpStream, to: SocketAddr, state: &Mutex<State>) -> io::Result<()> {
    let far = TcpStream::connect(to)?;
    for socket in [&near, &far] {
        socket.set_nodelay(true)?;
    }
    let mut state = state.lock();
    state.sockets.extend([near.try_clone()?, far.try_clone()?]);
    drop(state);
    let (back_to, back_from) = (near.try_clone()?, far.try_clone()?);
    thread::Builder::new().spawn(move || pass_on(near, far))?;
    thread::Builder::new().spawn(move || pass_on(back_from, back_to))?;
    Ok(())
}

/// Passes on until either side ends.
fn pass_on(mut from: TcpStream, mut to: TcpStream) {
    let mut bytes = vec![0; CHUNK];
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        if to.write_all(&bytes[..count]).is_err() {
            break;
        }
    }
    for socket in [&from, &to] {
        let _ = socket.shutdown(Shutdown::Both);
    }
}
