// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The side that answers: one thread a connection, none of which can hold up another.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use super::{Answer, Command};

/// The longest line that is read; no command is near it.
const MAX_LINE: u64 = 64 << 10;
/// The most connections at a time.
const MAX_CONNECTIONS: usize = 32;

/// What carries commands out.
pub trait Handler: Send + Sync + 'static {
    /// Carries `command` out. Must not wait for a migration's peer.
    ///
    /// # Errors
    /// A sentence that says why not.
    fn handle(&self, command: Command) -> Result<serde_json::Value, String>;
}

/// Listens at `path` (a socket left there by a dead process is replaced) and answers in threads of its own.
///
/// # Errors
/// If the socket cannot be made, or a living process listens there.
pub fn serve(path: &Path, handler: Arc<dyn Handler>) -> io::Result<()> {
    let listener = bind(path)?;
    let connections = Arc::new(AtomicUsize::new(0));
    thread::Builder::new()
        .name("control".into())
        .spawn(move || {
            for stream in listener.incoming() {
                let stream = match stream {
                    Ok(stream) => stream,
                    Err(error) => {
                        log::warn!("control socket: {error}");
                        thread::sleep(std::time::Duration::from_millis(100));
                        continue;
                    }
                };
                if connections.fetch_add(1, Ordering::AcqRel) >= MAX_CONNECTIONS {
                    connections.fetch_sub(1, Ordering::AcqRel);
                    log::warn!(
                        "control socket: more than {MAX_CONNECTIONS} connections, one refused"
                    );
                    continue;
                }
                let (handler, open) = (Arc::clone(&handler), Arc::clone(&connections));
                let spawned = thread::Builder::new()
                    .name("control-peer".into())
                    .spawn(move || {
                        if let Err(error) = converse(stream, &*handler) {
                            log::debug!("control connection: {error}");
                        }
                        open.fetch_sub(1, Ordering::AcqRel);
                    });
                if let Err(error) = spawned {
                    connections.fetch_sub(1, Ordering::AcqRel);
                    log::warn!("control connection: {error}");
                }
            }
        })?;
    Ok(())
}

/// A listener that appears at `path` when it can be connected to and not before: `bind` alone makes the file
/// a moment earlier than `listen` lets anybody in.
fn bind(path: &Path) -> io::Result<UnixListener> {
    if UnixStream::connect(path).is_ok() {
        return Err(io::ErrorKind::AddrInUse.into());
    }
    let mut unfinished = path.as_os_str().to_owned();
    unfinished.push(format!(".{}", std::process::id()));
    let listener = UnixListener::bind(&unfinished)?;
    std::fs::rename(&unfinished, path)?;
    Ok(listener)
}

/// Answers line by line until the peer hangs up. A line that is no command gets an error and nothing else
/// happens; one without an end gets the connection closed.
fn converse(stream: UnixStream, handler: &dyn Handler) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = Vec::new();
        let read = (&mut reader).take(MAX_LINE).read_until(b'\n', &mut line)?;
        if read == 0 {
            return Ok(());
        }
        if line.last() != Some(&b'\n') && read as u64 == MAX_LINE {
            answer(reader.get_mut(), Err("the line is too long".into()))?;
            return Ok(());
        }
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let result = serde_json::from_slice::<Command>(&line)
            .map_err(|error| format!("not a command: {error}"))
            .and_then(|command| handler.handle(command));
        answer(reader.get_mut(), result)?;
    }
}

fn answer(stream: &mut UnixStream, result: Result<serde_json::Value, String>) -> io::Result<()> {
    let answer = match result {
        Ok(value) => Answer::Return(value),
        Err(desc) => Answer::Error { desc },
    };
    let mut line = serde_json::to_vec(&answer)?;
    line.push(b'\n');
    stream.write_all(&line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{Client, ClientError};

    struct Echo;

    impl Handler for Echo {
        fn handle(&self, command: Command) -> Result<serde_json::Value, String> {
            match command {
                Command::Status => Ok(serde_json::json!({"machine": "running"})),
                other => Err(format!("{other:?} is not for here")),
            }
        }
    }

    fn served() -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control");
        serve(&path, Arc::new(Echo)).unwrap();
        (dir, path)
    }

    #[test]
    fn garbage_gets_an_error_and_the_connection_goes_on() {
        let (_dir, path) = served();
        let mut client = Client::connect(&path).unwrap();
        let mut raw = UnixStream::connect(&path).unwrap();
        raw.write_all(b"\x00\xff{]\n\n{\"execute\": \"fly\"}\n")
            .unwrap();
        let mut lines = BufReader::new(raw).lines();
        for _ in 0..2 {
            let line = lines.next().unwrap().unwrap();
            assert!(line.contains("not a command"), "{line}");
        }
        let status: serde_json::Value = client.ask(&Command::Status).unwrap();
        assert_eq!(status["machine"], "running");
        assert!(matches!(
            client.tell(&Command::Cont),
            Err(ClientError::Refused(_))
        ));
    }

    #[test]
    fn a_line_without_an_end_is_cut_off() {
        let (_dir, path) = served();
        let mut raw = UnixStream::connect(&path).unwrap();
        raw.write_all(&vec![b'x'; MAX_LINE as usize]).unwrap();
        let mut answer = String::new();
        BufReader::new(raw).read_to_string(&mut answer).unwrap();
        assert!(answer.contains("too long"), "{answer}");
    }

    #[test]
    fn a_dead_process_leaves_no_lock_behind_but_a_living_one_keeps_its_socket() {
        let (dir, path) = served();
        assert!(serve(&path, Arc::new(Echo)).is_err());
        let stale = dir.path().join("stale");
        drop(UnixListener::bind(&stale).unwrap());
        serve(&stale, Arc::new(Echo)).unwrap();
        assert!(Client::connect(&stale).is_ok());
    }
}
