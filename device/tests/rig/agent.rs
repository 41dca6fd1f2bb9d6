// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest's agent, at the device's end of its port.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use spec::agent::proof::{Challenge, Key};
use spec::agent::{Answer, Ask, Deframer, Frame, Settings, Totals, VERSION};
use spec_testing::agent::{frame, map_frame};

use super::guest::Daemon;
use super::{PATIENCE, eventually};

pub struct Agent {
    pub port: UnixStream,
    input: Box<Deframer>,
}

impl Agent {
    /// Connects and sends nothing.
    pub fn connect_only(daemon: &Daemon) -> Self {
        let path = daemon.agent();
        let port = eventually("the agent's socket", || UnixStream::connect(&path).ok());
        port.set_read_timeout(Some(PATIENCE)).unwrap();
        Self {
            port,
            input: Box::default(),
        }
    }

    /// Connects, gets the device's greeting, and answers that its kernel has these `flags`.
    pub fn connect(daemon: &Daemon, flags: u32) -> Self {
        let mut agent = Self::connect_only(daemon);
        agent.greet(flags);
        agent
    }

    /// Connects and proves that it has `key`. The device may still have to answer.
    pub fn prove(daemon: &Daemon, key: &[u8]) -> Self {
        let mut agent = Self::connect_only(daemon);
        let challenge = agent.challenged();
        agent.send(&Key::new(key).unwrap().prove(&challenge).to_frame());
        agent
    }

    /// Answers the device's greeting: its kernel has these `flags`.
    pub fn greet(&mut self, flags: u32) {
        assert_eq!(self.asked(), Ask::Hello);
        self.hello(flags);
    }

    /// Sends Hello: its kernel has these `flags`.
    pub fn hello(&mut self, flags: u32) {
        let settings = Settings {
            version: VERSION,
            page_size: 4096,
            pages: super::guest::PAGES,
            flags,
        };
        self.say(Answer::HELLO, 0, &settings.to_bytes());
    }

    /// Receives the device's challenge.
    pub fn challenged(&mut self) -> Challenge {
        self.next(|frame| Challenge::read(frame).expect("a challenge"))
    }

    /// Receives the next request.
    pub fn asked(&mut self) -> Ask {
        self.next(|frame| Ask::read(frame).unwrap())
    }

    fn next<T>(&mut self, read: impl Fn(&Frame<'_>) -> T) -> T {
        loop {
            if let Some(frame) = self.input.next_frame() {
                return read(&frame);
            }
            let count = self.port.read(self.input.space()).unwrap();
            assert_ne!(count, 0, "the device has hung up");
            self.input.filled(count);
        }
    }

    /// Whether a request, or the rest of one, waits to be read.
    pub fn is_asked(&self) -> bool {
        self.polled(PollFlags::IN) == PollFlags::IN
    }

    pub fn is_hung_up_on(&self) -> bool {
        self.polled(PollFlags::empty()).contains(PollFlags::HUP)
    }

    fn polled(&self, flags: PollFlags) -> PollFlags {
        let mut polled = [PollFd::new(&self.port, flags)];
        poll(&mut polled, Some(&Timespec::default())).unwrap();
        polled[0].revents()
    }

    pub fn say(&mut self, kind: u16, epoch: u64, payload: &[u8]) {
        self.send(&frame(kind, epoch, payload));
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.port.write_all(bytes).unwrap();
    }

    /// Reports free pages: of the `count` pages from `first` on, those whose bits are set in `words`.
    pub fn map(&mut self, epoch: u64, first: u64, count: u64, words: &[u64]) {
        self.send(&map_frame(epoch, first, count, words));
    }

    pub fn end(&mut self, epoch: u64) {
        self.say(Answer::END, epoch, &Totals::default().to_bytes());
    }
}
