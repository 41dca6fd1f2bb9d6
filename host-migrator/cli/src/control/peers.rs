// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The connections of a control socket. Their number is bounded, and a new one takes the place of an idle one.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use parking_lot::Mutex;

/// The most connections at a time.
pub(super) const MAX_PEERS: usize = 32;

/// The open connections.
#[derive(Debug, Default)]
pub(super) struct Peers(Mutex<Open>);

#[derive(Debug, Default)]
struct Open {
    peers: Vec<Peer>,
    next: u64,
}

#[derive(Debug)]
struct Peer {
    id: u64,
    stream: UnixStream,
    standing: Standing,
}

/// What a connection is doing. The least connection is closed first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Standing {
    /// It has given no command since it came at this time.
    New(Instant),
    /// Its last command was answered then.
    Idle(Instant),
    /// A command of its is being carried out: it does not give way.
    Busy,
}

impl Peers {
    /// Lets `stream` in and returns its number. If there are too many, one that is idle loses its connection: one
    /// that has given no command, or else the one that has been silent for longest.
    ///
    /// # Errors
    /// If all others are busy, or the system has no more file descriptors.
    pub(super) fn let_in(&self, stream: &UnixStream) -> io::Result<u64> {
        let stream = stream.try_clone()?;
        let mut open = self.0.lock();
        if open.peers.len() >= MAX_PEERS {
            let idle = (0..open.peers.len())
                .filter(|&place| open.peers[place].standing != Standing::Busy)
                .min_by_key(|&place| open.peers[place].standing);
            let Some(place) = idle else {
                let text = format!("{MAX_PEERS} commands are being carried out at once");
                return Err(io::Error::other(text));
            };
            let idle = open.peers.swap_remove(place);
            // Its thread sees the end. A connection that is closed already need not be shut down.
            let _ = idle.stream.shutdown(Shutdown::Both);
        }
        let id = open.next;
        open.next += 1;
        open.peers.push(Peer {
            id,
            stream,
            standing: Standing::New(Instant::now()),
        });
        Ok(id)
    }

    /// Peer `id` has given a command, which is carried out now. `false` if it has lost its connection: nobody would
    /// hear the answer.
    pub(super) fn begins(&self, id: u64) -> bool {
        self.set(id, Standing::Busy)
    }

    /// The command of peer `id` has been carried out.
    pub(super) fn is_done(&self, id: u64) {
        self.set(id, Standing::Idle(Instant::now()));
    }

    /// Peer `id` has hung up.
    pub(super) fn has_gone(&self, id: u64) {
        self.0.lock().peers.retain(|peer| peer.id != id);
    }

    fn set(&self, id: u64, standing: Standing) -> bool {
        let mut open = self.0.lock();
        let peer = open.peers.iter_mut().find(|peer| peer.id == id);
        peer.map(|peer| peer.standing = standing).is_some()
    }
}
