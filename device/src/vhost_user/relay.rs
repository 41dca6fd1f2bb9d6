// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Passes messages between the front end and the vhost-user crate.
//!
//! The crate's daemon gets its requests through this relay. The relay receives a message whole, has the [`Gate`] check
//! it, passes it on unchanged with its file descriptors, and waits until the crate has done it. So messages take effect
//! in order, whether the gate or the crate does them. A front end that stops in the middle of a message stops nobody
//! else. And much of what would make the crate hang up gets a refusal as its answer.
//!
//! Who checks what: [`Message`] checks the length of a message and the number of its file descriptors; the [`Gate`]
//! checks files, regions, running rings and the guest's configuration writes; the crate checks types, flags, sizes and
//! the arithmetic of fields; [`crate::virtqueue`] checks what the guest puts into its rings; [`crate::memory::sigbus`]
//! guards against memory that disappears.
//!
//! Kicks, interrupts and guest memory do not pass through here.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags};

use crate::guest::config_channel::ConfigChannel;
use crate::sockets;
use crate::vhost_user::backend::Backend;
use crate::vhost_user::gate::{Gate, Passage};
use crate::vhost_user::messages::{Message, request};
use crate::vhost_user::transfer::Transfer;

/// Passes messages between `front` and the crate's end `back` until one of them hangs up.
///
/// # Errors
/// [`io::ErrorKind::InvalidData`] for a message that is too long or carries too many file descriptors;
/// [`io::ErrorKind::TimedOut`] for one whose rest does not arrive; [`io::ErrorKind::InvalidInput`] for a refused one
/// whose sender did not ask for an acknowledgement; any error of the sockets.
pub fn relay(
    front: &UnixStream,
    back: &UnixStream,
    backend: &Backend,
    channel: &ConfigChannel,
) -> io::Result<()> {
    let mut gate = Gate::new(backend, channel);
    loop {
        let ready = wait(front, back, backend)?;
        if backend.has_lost_memory() {
            return Err(io::Error::other(
                "the front end has truncated memory that the device uses",
            ));
        }
        if ready.transfer
            && let Some(transfer) = backend.transfer().as_mut()
        {
            transfer.go_on();
        }
        if ready.back {
            // The crate sends nothing unasked, so it has hung up.
            return Ok(());
        }
        if ready.front {
            let Some(mut message) = Message::receive(front)? else {
                return Ok(());
            };
            if !deal_with(&mut message, &mut gate, front, back)? {
                return Ok(());
            }
        }
    }
}

/// Which of the descriptors are ready.
struct Ready {
    front: bool,
    back: bool,
    transfer: bool,
}

fn wait(front: &UnixStream, back: &UnixStream, backend: &Backend) -> io::Result<Ready> {
    // The crate is idle now, so no other thread needs the transfer.
    let transfer = backend.transfer();
    let transfer = transfer.as_ref().and_then(Transfer::event);
    let mut polled: Vec<_> = [front.as_fd(), back.as_fd(), backend.lost_event().as_fd()]
        .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
        .into_iter()
        .chain(transfer)
        .collect();
    sockets::wait_for(&mut polled, None)?;
    let ready = |at: usize| polled.get(at).is_some_and(|fd| !fd.revents().is_empty());
    if ready(2) {
        let mut count = [0; 8];
        let _ = rustix::io::read(backend.lost_event(), &mut count);
    }
    Ok(Ready {
        front: ready(0),
        back: ready(1),
        transfer: ready(3),
    })
}

/// Does or refuses what `message` asks; `false` if the crate has hung up.
fn deal_with(
    message: &mut Message,
    gate: &mut Gate<'_>,
    front: &UnixStream,
    back: &UnixStream,
) -> io::Result<bool> {
    let outcome = gate.check(message);
    if let Ok(Passage::Pass) = outcome {
        return pass_on(message, front, back);
    }
    let request = message.request();
    let asked = gate.acknowledges(message);
    match outcome {
        Ok(Passage::Answer(answer)) => answer.send(front)?,
        Ok(_) if asked => Message::acknowledgement(request, false).send(front)?,
        Ok(_) => {}
        Err(refusal) if asked => {
            log::warn!("the front end's request {request} is refused: {refusal}");
            Message::acknowledgement(request, true).send(front)?;
        }
        // A bad configuration write by the guest must not cost it the device.
        Err(refusal) if request == request::SET_CONFIG => {
            log::debug!("a configuration write is ignored: {refusal}");
        }
        Err(refusal) => return Err(refusal),
    }
    Ok(true)
}

/// Has the crate do what `message` asks, and passes the answer on; `false` if the crate hangs up instead.
fn pass_on(message: &Message, front: &UnixStream, back: &UnixStream) -> io::Result<bool> {
    message.send(back)?;
    // This request changes nothing and always has an answer. The crate answers in order, so `message` is done by then.
    match Message::ask(request::GET_FEATURES).send(back) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        sent => sent?,
    }
    let mut expected = 1 + usize::from(message.request() == request::GET_FEATURES);
    loop {
        let reply = match Message::receive_until(back, None) {
            // It has hung up before it read that request.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => None,
            reply => reply?,
        };
        let Some(reply) = reply else {
            return Ok(false);
        };
        if reply.request() == request::GET_FEATURES {
            expected -= 1;
            if expected == 0 {
                return Ok(true);
            }
        }
        reply.send(front)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::thread;

    use crate::balloon::Balloon;
    use crate::balloon::options::Options;

    /// Runs `front` and `back` as the two ends of a relay and returns how the relay ended.
    fn between(
        front: impl FnOnce(UnixStream) + Send,
        back: impl FnOnce(UnixStream) + Send,
    ) -> io::Result<()> {
        let (front_end, relay_front) = UnixStream::pair().unwrap();
        let (back_end, relay_back) = UnixStream::pair().unwrap();
        let channel = Arc::new(ConfigChannel::default());
        let balloon = Balloon::new(Options::default(), Arc::clone(&channel));
        let backend = Backend::new(balloon).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| front(front_end));
            scope.spawn(|| back(back_end));
            let result = relay(&relay_front, &relay_back, &backend, &channel);
            drop((relay_front, relay_back));
            result
        })
    }

    fn next(stream: &UnixStream) -> Message {
        Message::receive(stream).unwrap().unwrap()
    }

    #[test]
    fn the_front_end_gets_the_answer_to_its_request_and_not_that_to_the_relays() {
        between(
            |front| {
                for request in [request::GET_FEATURES, 15, request::GET_FEATURES] {
                    Message::ask(request).send(&front).unwrap();
                    let reply = next(&front);
                    assert_eq!((reply.request(), reply.payload_word(0)), (request, 7));
                }
            },
            |back| {
                for request in [1, 1, 15, 1, 1, 1] {
                    assert_eq!(next(&back).request(), request);
                    Message::reply(request, &[7, 0]).send(&back).unwrap();
                }
            },
        )
        .unwrap();
    }

    #[test]
    fn a_back_ends_last_answer_is_passed_on_before_its_hang_up() {
        between(
            |front| {
                Message::ask(15).send(&front).unwrap();
                assert_eq!(next(&front).request(), 15);
                assert!(Message::receive(&front).unwrap().is_none());
            },
            |back| {
                next(&back);
                Message::reply(15, &[]).send(&back).unwrap();
            },
        )
        .unwrap();
    }
}
