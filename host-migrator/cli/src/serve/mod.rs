// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `lacuna serve`: answers the page faults of VMMs that restore a guest with a page-fault handler, as Firecracker does.
//!
//! | module | what it is |
//! |---|---|
//! | `handshake` | what a client says: its regions, and its userfaultfd |
//! | `source` | where the pages come from |
//! | `error` | why a client, or nobody, can be served |

mod error;
mod handshake;
mod source;

use std::fs;
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Duration;

use host_migrator::paging::{MissingPages, Paging, PagingEvent, PagingOptions, PagingStatus};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::Timespec;
use serde::Serialize;
use spec_sockets::Access;
use vhost_device_balloon::daemon::signals::EndSignals;

use crate::args::{ServeArgs, snapshot_at};
use error::ClientError;
pub use error::ServeError;
use source::Source;

/// The most clients at a time.
const MOST_CLIENTS: usize = 64;
/// How long the server waits before it takes the next client, if it has too many or cannot take one.
const PAUSE: Duration = Duration::from_millis(100);
/// How often a client is looked at.
const LOOK: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

/// A client that is not served any more.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Served {
    client: u64,
    /// 0 if it is not known.
    pid: i32,
    name: String,
    status: PagingStatus,
    /// Why it is not served any more; absent if it has hung up.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// `lacuna serve`
///
/// # Errors
/// [`ServeError`] if nobody can be served. What is wrong with one client is told on standard error.
pub fn serve(args: ServeArgs) -> Result<(), ServeError> {
    let source = Source::open(&snapshot_at(&args.file)?)?;
    let signals = EndSignals::register().map_err(failed("wait for signals"))?;
    let (listener, file) =
        spec_sockets::listen(&args.uffd_socket, Access::new(args.uffd_socket_mode, None))?;
    let (ended, has_ended) = channel();
    let signalled: Sender<()> = ended.clone();
    let waiting = thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            signals.wait();
            // If nobody listens, the process ends anyway.
            let _ = signalled.send(());
        });
    waiting.map_err(failed("start a thread"))?;
    let accepting = thread::Builder::new()
        .name("clients".into())
        .spawn(move || {
            let args = Arc::new(args);
            let count = Arc::<AtomicUsize>::default();
            for (number, stream) in (1..).zip(listener.incoming()) {
                while count.load(Ordering::Acquire) >= MOST_CLIENTS {
                    thread::sleep(PAUSE);
                }
                let begun = stream.and_then(|stream| {
                    count.fetch_add(1, Ordering::AcqRel);
                    let (source, args, count, ended) = (
                        source.clone(),
                        Arc::clone(&args),
                        Arc::clone(&count),
                        ended.clone(),
                    );
                    let client = thread::Builder::new().name(format!("client-{number}"));
                    client.spawn(move || {
                        serve_one(number, &stream, &source, &args);
                        count.fetch_sub(1, Ordering::AcqRel);
                        if args.once {
                            let _ = ended.send(());
                        }
                    })
                });
                if let Err(error) = begun {
                    log::warn!("a client cannot be taken: {error}");
                    thread::sleep(PAUSE);
                }
            }
        });
    accepting.map_err(failed("start a thread"))?;
    // Sent by a signal, or by the end of the only client. The thread that accepts has a sender, so this waits.
    let _ = has_ended.recv();
    file.remove().map_err(failed("remove the socket"))
}

fn failed(what: &'static str) -> impl FnOnce(io::Error) -> ServeError {
    move |source| ServeError::Io { what, source }
}

fn serve_one(number: u64, stream: &UnixStream, source: &Source, args: &ServeArgs) {
    let pid = rustix::net::sockopt::socket_peercred(stream);
    let pid = pid.map_or(0, |peer| peer.pid.as_raw_nonzero().get());
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let mut status = PagingStatus::default();
    let served = answer(stream, source, args, &mut status);
    let ended = Served {
        client: number,
        pid,
        name: name.trim_end().to_owned(),
        status,
        error: served.err().map(|error| error.to_string()),
    };
    let told = match args.json {
        true => serde_json::to_string(&ended).map_err(io::Error::from),
        false => Ok(ended.to_string()),
    };
    if let Err(error) = told.and_then(|line| writeln!(io::stdout(), "{line}")) {
        log::warn!("cannot tell of client {number}: {error}");
    }
}

/// Answers the faults of the client until it hangs up, or something is wrong.
fn answer(
    stream: &UnixStream,
    source: &Source,
    args: &ServeArgs,
    status: &mut PagingStatus,
) -> Result<(), ClientError> {
    let (userfaultfd, mappings) = handshake::receive(stream, source.layout())?;
    let missing = MissingPages::new(userfaultfd, mappings, source.content()?)?;
    let (tell, failure) = channel();
    let told = move |event| {
        if let PagingEvent::Failed(error) = event {
            // If nobody listens, the client is not served any more.
            let _ = tell.send(error);
        }
    };
    let options = PagingOptions {
        threads: args.threads,
        ..PagingOptions::default()
    };
    let paging = Paging::start(missing, source.pager(), options, Box::new(told))?;
    paging.set_prefault(args.prefault);
    let end = loop {
        if let Ok(error) = failure.try_recv() {
            break Err(error.into());
        }
        match has_hung_up(stream) {
            Ok(true) => break Ok(()),
            Ok(false) => {}
            Err(error) => break Err(ClientError::Socket(error)),
        }
    };
    *status = paging.status();
    end
}

/// Waits a moment for the client to hang up. It has nothing more to say.
fn has_hung_up(stream: &UnixStream) -> io::Result<bool> {
    let mut waits = [PollFd::new(stream, PollFlags::RDHUP)];
    match poll(&mut waits, Some(&LOOK)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    let gone = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
    Ok(waits[0].revents().intersects(gone))
}

impl std::fmt::Display for Served {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (status, name) = (&self.status, &self.name);
        write!(
            f,
            "client {} (pid {}, {name}): {} faults answered, {} of them with zeros; {} pages loaded ahead",
            self.client, self.pid, status.faults, status.faults_zero, status.loaded
        )?;
        match &self.error {
            Some(error) => write!(f, "; not served any more: {error}"),
            None => f.write_str("; it has hung up"),
        }
    }
}
