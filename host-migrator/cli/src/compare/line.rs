// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A line between two machines that can be cut: it passes on what either side sends.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use parking_lot::{Condvar, Mutex};
use rustix::net::connect_unspec;

use super::CompareError;
use crate::args::CutKind;

/// Bytes that are passed on at once.
const CHUNK: usize = 64 << 10;

/// A line from the source to an address of the destination. It takes no connections after it was cut.
#[derive(Debug)]
pub struct Line {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct State {
    cut: Option<CutKind>,
    is_over: bool,
    connections: Vec<Ends>,
}

/// A connection's two sockets.
#[derive(Debug)]
struct Ends {
    source: TcpStream,
    destination: TcpStream,
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
            shared: Arc::default(),
        };
        let shared = Arc::clone(&line.shared);
        let accept = move || {
            for near in listener.incoming() {
                if near.and_then(|near| join(near, to, &shared)).is_err() {
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

    /// Cuts it as `how` says. What is on it is lost.
    pub fn cut(&self, how: CutKind) {
        let mut state = self.shared.state.lock();
        state.cut = Some(how);
        for ends in &state.connections {
            ends.cut(how);
        }
        drop(state);
        // The thread that accepts looks once more.
        let _ = TcpStream::connect(self.address);
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.shared.state.lock().is_over = true;
        self.shared.ended.notify_all();
        self.cut(CutKind::Close);
    }
}

impl Ends {
    /// It may have ended by itself, so no failure counts.
    fn cut(&self, how: CutKind) {
        let _ = match how {
            CutKind::Close => {
                let _ = self.source.shutdown(Shutdown::Both);
                self.destination.shutdown(Shutdown::Both)
            }
            // To disconnect a socket resets its connection.
            CutKind::Reset => [&self.source, &self.destination]
                .into_iter()
                .try_for_each(|socket| connect_unspec(socket).map_err(io::Error::from)),
            CutKind::HalfSource => self.source.shutdown(Shutdown::Write),
            CutKind::HalfDestination => self.destination.shutdown(Shutdown::Write),
            CutKind::Silence => Ok(()),
        };
    }
}

/// Passes on what comes from `source`, and what comes back. An error if the line was cut.
fn join(source: TcpStream, to: SocketAddr, shared: &Arc<Shared>) -> io::Result<()> {
    let cut = || io::ErrorKind::ConnectionRefused.into();
    if shared.state.lock().cut.is_some() {
        return Err(cut());
    }
    let destination = TcpStream::connect(to)?;
    for socket in [&source, &destination] {
        socket.set_nodelay(true)?;
    }
    let (from, back) = (source.try_clone()?, source.try_clone()?);
    let (there, from_there) = (destination.try_clone()?, destination.try_clone()?);
    {
        let mut state = shared.state.lock();
        // It may have been cut meanwhile.
        if state.cut.is_some() {
            return Err(cut());
        }
        state.connections.push(Ends {
            source,
            destination,
        });
    }
    for (from, to) in [(from, there), (from_there, back)] {
        let shared = Arc::clone(shared);
        thread::Builder::new().spawn(move || pass_on(from, to, &shared))?;
    }
    Ok(())
}

/// Passes on until `from` ends, `to` takes nothing more, or the line is silent.
fn pass_on(mut from: TcpStream, mut to: TcpStream, shared: &Shared) {
    let mut bytes = vec![0; CHUNK];
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        if !shared.passes() {
            return;
        }
        if to.write_all(&bytes[..count]).is_err() {
            let _ = from.shutdown(Shutdown::Read);
            return;
        }
    }
    if shared.passes() {
        let _ = to.shutdown(Shutdown::Write);
    }
}

impl Shared {
    /// Whether something may be passed on. Waits while a silent line is there; what it has kept back is lost when it ends.
    fn passes(&self) -> bool {
        let mut state = self.state.lock();
        let is_silent = |state: &mut State| state.cut == Some(CutKind::Silence) && !state.is_over;
        self.ended.wait_while(&mut state, is_silent);
        !state.is_over
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// A line with a connection, of which this is the source's end and the destination's.
    fn line() -> (Line, TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let line = Line::to(&format!("tcp:{}", listener.local_addr().unwrap())).unwrap();
        let mut source = TcpStream::connect(line.address).unwrap();
        let (mut destination, _) = listener.accept().unwrap();
        let mut byte = [0];
        source.write_all(&[7]).unwrap();
        destination.read_exact(&mut byte).unwrap();
        destination.write_all(&byte).unwrap();
        source.read_exact(&mut byte).unwrap();
        assert_eq!(byte, [7]);
        (line, source, destination)
    }

    #[test]
    fn each_cut_is_seen_as_it_is_called() {
        let mut byte = [0];
        let (line, mut source, mut destination) = line();
        line.cut(CutKind::Close);
        assert_eq!(source.read(&mut byte).unwrap(), 0);
        assert_eq!(destination.read(&mut byte).unwrap(), 0);

        let (line, mut source, mut destination) = self::line();
        line.cut(CutKind::Reset);
        for socket in [&mut source, &mut destination] {
            let error = socket.read(&mut byte).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        }

        let (line, mut source, mut destination) = self::line();
        line.cut(CutKind::HalfSource);
        assert_eq!(source.read(&mut byte).unwrap(), 0);
        source.write_all(&[8]).unwrap();
        destination.read_exact(&mut byte).unwrap();

        let (line, mut source, mut destination) = self::line();
        line.cut(CutKind::HalfDestination);
        assert_eq!(destination.read(&mut byte).unwrap(), 0);
        destination.write_all(&[8]).unwrap();
        source.read_exact(&mut byte).unwrap();

        let (line, mut source, mut destination) = self::line();
        line.cut(CutKind::Silence);
        source.write_all(&[8]).unwrap();
        let short = Some(Duration::from_millis(50));
        destination.set_read_timeout(short).unwrap();
        let error = destination.read(&mut byte).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        drop(line);
        destination.set_read_timeout(None).unwrap();
        assert_eq!(
            destination.read(&mut byte).unwrap(),
            0,
            "ends with the line"
        );
    }
}
