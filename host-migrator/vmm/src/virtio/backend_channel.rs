// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The channel on which the back end sends requests (vhost-user SET_BACKEND_REQ_FD), and the watch on the
//! main connection.
//!
//! A thread acknowledges each request at once. The back end may send a request while one of ours waits for its answer,
//! and it may not answer ours before it has the acknowledgement. So another thread does what the request asks for.
//!
//! The handler in the crate `vhost` is not used: it keeps the back end's end of the channel open, so it never sees the
//! channel close, and its reads have no time limit.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use vhost::vhost_user::message::{BackendReq, VhostUserHeaderFlag};

const VERSION: u32 = 1;
/// A limit for payloads. Requests of a back end have less.
const MAX_PAYLOAD: u32 = 4096;
/// How long a back end may take to send the rest of a message, or to accept an acknowledgement.
const MESSAGE_LIMIT: Duration = Duration::from_secs(5);

/// Serves `channel` until `connection`, a clone of the main connection, hangs up.
///
/// The receiver yields once for one or several changes of the configuration. It ends with the connection.
///
/// # Errors
/// The operating system's, if the thread cannot be started.
pub fn serve(
    connection: UnixStream,
    channel: UnixStream,
) -> io::Result<(Receiver<()>, JoinHandle<()>)> {
    channel.set_read_timeout(Some(MESSAGE_LIMIT))?;
    channel.set_write_timeout(Some(MESSAGE_LIMIT))?;
    // Room for one: the next read also sees changes that come before it.
    let (changes, receiver) = sync_channel(1);
    let thread = thread::Builder::new()
        .name("vhost-channel".into())
        .spawn(move || run(&connection, channel, &changes))?;
    Ok((receiver, thread))
}

fn run(connection: &UnixStream, channel: UnixStream, changes: &SyncSender<()>) {
    let mut channel = Some(channel);
    loop {
        let mut fds = vec![PollFd::new(connection, PollFlags::RDHUP)];
        fds.extend(channel.iter().map(|c| PollFd::new(c, PollFlags::IN)));
        match poll(&mut fds, None) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(error) => {
                log::error!("balloon: cannot watch the back end: {error}");
                return;
            }
        }
        let pending: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        if pending[0] {
            return;
        }
        if let Some(open) = &mut channel
            && let Err(error) = serve_one(open, changes)
        {
            log::warn!(
                "balloon: the back end's channel ended, no more configuration changes: {error}"
            );
            channel = None;
        }
    }
}

/// Reads one request and acknowledges it if it asks for that.
fn serve_one(channel: &mut UnixStream, changes: &SyncSender<()>) -> io::Result<()> {
    let [request, flags, size] = read_words(channel)?;
    if size > MAX_PAYLOAD || flags & VhostUserHeaderFlag::VERSION.bits() != VERSION {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("request {request} with flags {flags:#x} and {size} bytes"),
        ));
    }
    let mut payload = vec![0; size as usize];
    channel.read_exact(&mut payload)?;
    let known = request == u32::from(BackendReq::CONFIG_CHANGE_MSG) && size == 0;
    if flags & VhostUserHeaderFlag::NEED_REPLY.bits() != 0 {
        let result = if known {
            0
        } else {
            u64::from(libc::ENOSYS as u32)
        };
        let mut reply = Vec::with_capacity(20);
        for word in [request, VERSION | VhostUserHeaderFlag::REPLY.bits(), 8] {
            reply.extend_from_slice(&word.to_ne_bytes());
        }
        reply.extend_from_slice(&result.to_ne_bytes());
        channel.write_all(&reply)?;
    }
    if known {
        // Full: a change is waiting to be read already. Closed: the device is ending.
        let _ = changes.try_send(());
    } else {
        log::warn!("balloon: the back end sent the unknown request {request}");
    }
    Ok(())
}

fn read_words(channel: &mut UnixStream) -> io::Result<[u32; 3]> {
    let mut words = [0; 3];
    for word in &mut words {
        let mut bytes = [0; 4];
        channel.read_exact(&mut bytes)?;
        *word = u32::from_ne_bytes(bytes);
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Shutdown;

    fn message(request: u32, flags: u32, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for word in [request, flags, payload.len() as u32] {
            bytes.extend_from_slice(&word.to_ne_bytes());
        }
        bytes.extend_from_slice(payload);
        bytes
    }

    fn reply(channel: &mut UnixStream) -> ([u32; 3], u64) {
        let header = read_words(channel).unwrap();
        let mut value = [0; 8];
        channel.read_exact(&mut value).unwrap();
        (header, u64::from_ne_bytes(value))
    }

    struct Served {
        connection: UnixStream,
        channel: UnixStream,
        changes: Receiver<()>,
        thread: JoinHandle<()>,
    }

    fn served() -> Served {
        let (connection, watched) = UnixStream::pair().unwrap();
        let (channel, ours) = UnixStream::pair().unwrap();
        let (changes, thread) = serve(watched, ours).unwrap();
        Served {
            connection,
            channel,
            changes,
            thread,
        }
    }

    #[test]
    fn changes_are_acknowledged_even_if_nobody_takes_them() {
        let mut served = served();
        for _ in 0..3 {
            served.channel.write_all(&message(2, 0x9, &[])).unwrap();
            assert_eq!(reply(&mut served.channel), ([2, 5, 8], 0));
        }
        served.connection.shutdown(Shutdown::Both).unwrap();
        served.thread.join().unwrap();
        assert_eq!(served.changes.iter().count(), 1);
    }

    #[test]
    fn an_unknown_request_is_refused_and_the_channel_lives_on() {
        let mut served = served();
        served
            .channel
            .write_all(&message(3, 0x9, &[1; 24]))
            .unwrap();
        assert_ne!(reply(&mut served.channel).1, 0);
        served.channel.write_all(&message(2, 0x1, &[])).unwrap();
        served.changes.recv().unwrap();
    }

    #[test]
    fn garbage_ends_the_channel_but_not_the_watch_on_the_connection() {
        let mut served = served();
        served.channel.write_all(&[0xff; 64]).unwrap();
        assert_eq!(served.channel.read(&mut [0; 1]).unwrap_or(0), 0);
        drop(served.connection);
        served.thread.join().unwrap();
        assert!(served.changes.recv().is_err());
    }
}
