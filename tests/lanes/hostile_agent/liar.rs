// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest's agent that lies: a thread of the test at the device's agent socket.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use host_migrator::GuestRam;
use spec::PAGE_SIZE;
use spec::agent::{Answer, Ask, Deframer, MAX_MAP_PAGES, Settings, Totals, VERSION};
use spec_testing::agent::{frame, map_frame};

/// How long the thread waits for a request, or for room on the socket, before it checks whether it must stop.
const TURN: Duration = Duration::from_millis(20);
/// Frames sent at a time by lies that never end.
const BURST: usize = 32;
/// Pages of a map that stays within the limit of all that an agent may report.
const FEW_PAGES: u64 = 64;

/// How the agent lies when it is asked for free pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// It reports all memory as free, but for other epochs than the requested one.
    WrongEpoch,
    /// It reports memory as free that the guest does not have.
    PastTheEnd,
    /// It reports the same pages, none of them free, again and again.
    Endless,
    /// It sends half a frame and then nothing.
    HalfFrame,
    /// It disconnects in the middle of a frame, and connects again.
    HangUp,
    /// It keeps sending noise, frames that are not answers, and Hellos that contradict each other.
    Flood,
    /// It reports all memory as free when a migration begins, although the guest uses most of it. Later it reports none.
    AllFreeAtFirst,
    /// It reports all memory as free whenever it is asked.
    AllFree,
}

impl Lie {
    /// The lies that must have no effect.
    pub const FUTILE: [Self; 6] = [
        Self::WrongEpoch,
        Self::PastTheEnd,
        Self::Endless,
        Self::HalfFrame,
        Self::HangUp,
        Self::Flood,
    ];

    /// Whether the lie goes on after the request was answered.
    fn is_endless(self) -> bool {
        matches!(self, Self::Endless | Self::Flood)
    }
}

/// The agent. It disconnects when dropped.
#[derive(Debug)]
pub struct Liar {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    lie: Lie,
    /// The guest's memory.
    ram: GuestRam,
    greeted: AtomicBool,
    lies: AtomicU64,
    stopped: AtomicBool,
    /// A copy of the guest's memory from when it was last reported as free, after the request had arrived.
    last_lie: Mutex<Vec<u8>>,
}

impl Liar {
    /// Connects to the device's socket at `path`, as the agent of a guest with `ram`, and sends Hello.
    pub fn start(path: &Path, lie: Lie, ram: GuestRam) -> Self {
        let shared = Arc::new(Shared {
            path: path.to_owned(),
            lie,
            ram,
            greeted: AtomicBool::new(false),
            lies: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
            last_lie: Mutex::default(),
        });
        let theirs = Arc::clone(&shared);
        let thread = thread::spawn(move || theirs.run());
        let liar = Self {
            shared,
            thread: Some(thread),
        };
        while !liar.shared.greeted.load(Ordering::Acquire) {
            assert!(!liar.is_over(), "the liar has failed before it could lie");
            thread::sleep(TURN);
        }
        liar
    }

    /// How many requests it has answered with its lie.
    pub fn lies(&self) -> u64 {
        self.shared.lies.load(Ordering::Acquire)
    }

    /// The guest's memory from when it was last reported as free; empty if it never was. A page that differs from this copy
    /// was written after the epoch had opened.
    pub fn last_lie(&self) -> Vec<u8> {
        let last = self.shared.last_lie.lock();
        last.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn is_over(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let result = thread.join();
            assert!(result.is_ok() || thread::panicking(), "the liar has failed");
        }
    }
}

impl Shared {
    /// One connection after the other. The device may hang up on such an agent.
    fn run(&self) {
        while !self.is_stopped() {
            let port = UnixStream::connect(&self.path).expect("the device listens for its agent");
            for result in [
                port.set_read_timeout(Some(TURN)),
                port.set_write_timeout(Some(TURN)),
            ] {
                result.expect("a socket has timeouts");
            }
            let mut connection = Connection {
                shared: self,
                port,
                endless: None,
            };
            // However the connection ended, open the next one.
            let _ = connection.serve();
        }
    }

    fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }
}

struct Connection<'a> {
    shared: &'a Shared,
    port: UnixStream,
    /// The number of the request whose answer does not end.
    endless: Option<u64>,
}

impl Connection<'_> {
    fn serve(&mut self) -> io::Result<()> {
        let mut input = Box::<Deframer>::default();
        while !self.shared.is_stopped() {
            match self.port.read(input.space()) {
                Ok(0) => return Ok(()),
                Ok(count) => input.filled(count),
                Err(error) if is_timeout(&error) => {}
                Err(error) => return Err(error),
            }
            while let Some(frame) = input.next_frame() {
                match Ask::read(&frame).expect("the device asks what the protocol knows") {
                    Ask::Hello => self.greet(0)?,
                    Ask::Map { epoch, first } => {
                        self.endless = Some(epoch).filter(|_| self.shared.lie.is_endless());
                        let told = if self.shared.lie == Lie::AllFreeAtFirst && !first {
                            self.end(epoch)
                        } else {
                            self.lie(epoch)
                        };
                        self.shared.lies.fetch_add(1, Ordering::AcqRel);
                        told?;
                    }
                    Ask::Stop => {}
                }
            }
            if let Some(epoch) = self.endless {
                for _ in 0..BURST {
                    self.lie(epoch)?;
                }
            }
        }
        Ok(())
    }

    fn greet(&mut self, flags: u32) -> io::Result<()> {
        let settings = Settings {
            version: VERSION,
            page_size: PAGE_SIZE as u32,
            pages: self.shared.ram.pages(),
            flags,
        };
        self.send(&frame(Answer::HELLO, 0, &settings.to_bytes()))?;
        self.shared.greeted.store(true, Ordering::Release);
        Ok(())
    }

    fn lie(&mut self, epoch: u64) -> io::Result<()> {
        let end = self.shared.ram.bitmap_pages();
        match self.shared.lie {
            Lie::WrongEpoch => {
                for wrong in [0, epoch - 1, epoch + 1, u64::MAX] {
                    self.call_all_free(wrong)?;
                }
                Ok(())
            }
            Lie::PastTheEnd => {
                for first in [end, end + FEW_PAGES, end << 8, 1 << 51] {
                    self.send(&map_of(epoch, first, FEW_PAGES, u64::MAX))?;
                }
                Ok(())
            }
            Lie::Endless => self.send(&map_of(epoch, 0, FEW_PAGES, 0)),
            Lie::HalfFrame => {
                let whole = map_of(epoch, 0, end, u64::MAX);
                self.send(&whole[..whole.len() / 2])
            }
            Lie::HangUp => {
                let whole = map_of(epoch, 0, end, u64::MAX);
                self.send(&whole[..whole.len() - 1])?;
                Err(io::ErrorKind::ConnectionAborted.into())
            }
            Lie::Flood => {
                self.send(&[b'L'; 3000])?;
                self.send(&frame(0x7777, epoch, &[0xff; 24]))?;
                self.greet(Settings::INIT_ON_FREE)?;
                self.greet(Settings::POISON)?;
                self.greet(0)
            }
            Lie::AllFreeAtFirst | Lie::AllFree => {
                let mut memory = Vec::new();
                for region in self.shared.ram.regions() {
                    let begin = memory.len();
                    memory.resize(begin + region.bytes() as usize, 0);
                    let result = self.shared.ram.read(*region, &mut memory[begin..]);
                    result.expect("the guest's memory can be read");
                }
                let mut last = self.shared.last_lie.lock();
                *last.as_deref_mut().expect("nobody panics with it") = memory;
                drop(last);
                self.call_all_free(epoch)?;
                self.end(epoch)
            }
        }
    }

    fn end(&mut self, epoch: u64) -> io::Result<()> {
        self.send(&frame(Answer::END, epoch, &Totals::default().to_bytes()))
    }

    fn call_all_free(&mut self, epoch: u64) -> io::Result<()> {
        for region in self.shared.ram.regions() {
            for first in (region.first()..region.end()).step_by(MAX_MAP_PAGES as usize) {
                let count = (region.end() - first).min(u64::from(MAX_MAP_PAGES));
                self.send(&map_of(epoch, first, count, u64::MAX))?;
            }
        }
        Ok(())
    }

    /// Sends all of `bytes`, unless it is told to stop.
    fn send(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() && !self.shared.is_stopped() {
            match self.port.write(bytes) {
                Ok(count) => bytes = &bytes[count..],
                Err(error) if is_timeout(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
    )
}

/// Of the `count` pages from `first` on, those of each 64 are free whose bits are set in `word`.
fn map_of(epoch: u64, first: u64, count: u64, word: u64) -> Vec<u8> {
    let count = count.min(u64::from(MAX_MAP_PAGES));
    let words = vec![word; count.div_ceil(64) as usize];
    map_frame(epoch, first, count, &words)
}
