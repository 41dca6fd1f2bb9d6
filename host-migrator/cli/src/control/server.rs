// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The server of a control socket: one thread for each connection, so that none holds up another.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use spec_sockets::{Access, SocketFile};

use super::descriptors::Receiving;
use super::peers::Peers;
use super::{Answer, Command};

/// The longest line that is read. Commands are much shorter.
const MAX_LINE: u64 = 64 << 10;
/// How long a client may leave its answer unread.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// Carries commands out.
pub trait Handler: Send + Sync + 'static {
    /// Carries `command` out, with the `descriptors` that came with it. Must not wait for a migration's peer.
    ///
    /// # Errors
    /// A sentence that says why not.
    fn handle(
        &self,
        command: Command,
        descriptors: Vec<OwnedFd>,
    ) -> Result<serde_json::Value, String>;

    /// Called when a `quit` was carried out and its answer was sent: now the process may end.
    fn quit_was_answered(&self);
}

/// A control socket that is being served. Dropping this removes the socket's file.
#[derive(Debug)]
pub struct Served(SocketFile);

impl Drop for Served {
    fn drop(&mut self) {
        if let Err(error) = self.0.remove() {
            log::warn!("cannot remove {}: {error}", self.0.path().display());
        }
    }
}

/// Listens at `path` for clients that `access` lets connect, and answers in threads of its own. A socket that a dead
/// process left at `path` is replaced; any other file is not.
///
/// # Errors
/// If the socket cannot be made, or another file is at `path`.
pub fn serve(path: &Path, access: Access, handler: Arc<dyn Handler>) -> io::Result<Served> {
    let (listener, file) = spec_sockets::listen(path, access)?;
    let served = Served(file);
    let peers = Arc::new(Peers::default());
    thread::Builder::new()
        .name("control".into())
        .spawn(move || {
            for stream in listener.incoming() {
                let let_in = stream.and_then(|stream| admit(stream, &peers, &handler));
                if let Err(error) = let_in {
                    log::warn!("control socket: {error}");
                    thread::sleep(Duration::from_millis(100));
                }
            }
        })?;
    Ok(served)
}

fn admit(stream: UnixStream, peers: &Arc<Peers>, handler: &Arc<dyn Handler>) -> io::Result<()> {
    stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
    let peer = peers.let_in(&stream)?;
    let (handler, others) = (Arc::clone(handler), Arc::clone(peers));
    let spawned = thread::Builder::new()
        .name("control-peer".into())
        .spawn(move || {
            if let Err(error) = converse(stream, peer, &others, &*handler) {
                log::debug!("control connection: {error}");
            }
            others.has_gone(peer);
        });
    if spawned.is_err() {
        peers.has_gone(peer);
    }
    spawned.map(|_| ())
}

/// Answers line by line until the peer hangs up. The answer to an unknown command is an error. A line that is too long
/// closes the connection.
fn converse(stream: UnixStream, peer: u64, peers: &Peers, handler: &dyn Handler) -> io::Result<()> {
    let mut reader = BufReader::new(Receiving::new(stream));
    loop {
        let mut line = Vec::new();
        let read = (&mut reader).take(MAX_LINE).read_until(b'\n', &mut line)?;
        if read == 0 {
            return Ok(());
        }
        if line.last() != Some(&b'\n') && read as u64 == MAX_LINE {
            answer(
                reader.get_mut().stream(),
                Err("the line is too long".into()),
            )?;
            return Ok(());
        }
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let command = serde_json::from_slice::<Command>(&line)
            .map_err(|error| format!("not a command: {error}"));
        let quits = matches!(command, Ok(Command::Quit(_)));
        if !peers.begins(peer) {
            return Ok(());
        }
        let descriptors = reader.get_mut().take();
        let result = command.and_then(|command| handler.handle(command, descriptors));
        peers.is_done(peer);
        let quits = quits && result.is_ok();
        let answered = answer(reader.get_mut().stream(), result);
        if quits {
            handler.quit_was_answered();
        }
        answered?;
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
    use std::fs::File;
    use std::os::unix::net::UnixListener;

    use super::super::descriptors::MOST;
    use super::super::peers::MAX_PEERS;
    use super::*;
    use crate::control::{Client, ClientError};

    struct Echo;

    impl Handler for Echo {
        fn handle(
            &self,
            command: Command,
            descriptors: Vec<OwnedFd>,
        ) -> Result<serde_json::Value, String> {
            match command {
                Command::Status => Ok(serde_json::json!({"machine": "running"})),
                Command::QueryMemory => Ok(serde_json::json!(descriptors.len())),
                other => Err(format!("{other:?} is not for here")),
            }
        }

        fn quit_was_answered(&self) {}
    }

    fn served() -> (tempfile::TempDir, std::path::PathBuf, Served) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control");
        let served = serve(&path, Access::OWNER, Arc::new(Echo)).unwrap();
        (dir, path, served)
    }

    #[test]
    fn clients_that_say_nothing_give_way_and_the_newest_is_heard() {
        let (_dir, path, _served) = served();
        let ask = |client: &mut Client| client.ask::<serde_json::Value>(&Command::Status);
        let mut user = Client::connect(&path).unwrap();
        ask(&mut user).unwrap();
        let idle: Vec<_> = (0..3 * MAX_PEERS)
            .map(|_| UnixStream::connect(&path).unwrap())
            .collect();
        ask(&mut Client::connect(&path).unwrap()).unwrap();
        ask(&mut user).expect("one that has given a command stays before those that have not");
        drop(idle);
    }

    #[test]
    fn the_socket_goes_with_its_server_but_another_ones_stays() {
        let (_dir, path, ours) = served();
        drop(ours);
        assert!(!path.exists());
        let ours = serve(&path, Access::OWNER, Arc::new(Echo)).unwrap();
        std::fs::remove_file(&path).unwrap();
        let _theirs = UnixListener::bind(&path).unwrap();
        drop(ours);
        assert!(path.exists());
    }

    #[test]
    fn garbage_gets_an_error_and_the_connection_goes_on() {
        let (_dir, path, _served) = served();
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
    fn descriptors_belong_to_the_command_that_they_came_with() {
        let (_dir, path, _served) = served();
        let mut client = Client::connect(&path).unwrap();
        let mut seen = |count: usize| -> usize {
            let copy = |_| File::open("/dev/null").unwrap().into();
            let descriptors: Vec<_> = (0..count).map(copy).collect();
            client
                .ask_with(&Command::QueryMemory, &descriptors)
                .unwrap()
        };
        assert_eq!([3, 0, MOST, 1].map(&mut seen), [3, 0, MOST, 1]);
    }

    #[test]
    fn a_line_without_an_end_is_cut_off() {
        let (_dir, path, _served) = served();
        let mut raw = UnixStream::connect(&path).unwrap();
        raw.write_all(&vec![b'x'; MAX_LINE as usize]).unwrap();
        let mut answer = String::new();
        BufReader::new(raw).read_to_string(&mut answer).unwrap();
        assert!(answer.contains("too long"), "{answer}");
    }

    #[test]
    fn a_dead_socket_is_replaced_and_nothing_else_is() {
        let (dir, path, served) = served();
        let serve = |path: &Path| serve(path, Access::OWNER, Arc::new(Echo));
        assert!(serve(&path).is_err());
        assert!(Client::connect(&path).is_ok());
        drop(served);
        assert!(!path.exists());

        let stale = dir.path().join("stale");
        drop(UnixListener::bind(&stale).unwrap());
        let _served = serve(&stale).unwrap();
        assert!(Client::connect(&stale).is_ok());

        let (file, folder) = (dir.path().join("file"), dir.path().join("folder"));
        std::fs::write(&file, "a file").unwrap();
        std::fs::create_dir(&folder).unwrap();
        assert!(serve(&file).is_err() && serve(&folder).is_err());
        assert_eq!(std::fs::read(&file).unwrap(), b"a file");
        let left = dir.path().read_dir().unwrap().count();
        assert_eq!(left, 3, "the stale socket's successor, file and folder");
    }
}
