// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Answers the host's requests: the agent protocol over an open port.

use std::io;
use std::time::{Duration, Instant};

use rustix::event::Timespec;
use rustix::time::{ClockId, clock_gettime};
use spec::PageRange;
use spec::agent::proof::{Challenge, Key};
use spec::agent::{
    Answer, Ask, Deframer, FRAME_HEADER_BYTES, Frame, MAX_FRAME, MAX_MAP_PAGES, Settings, Totals,
    frame, map,
};

use crate::free_pages::FreePages;
use crate::key::KeyFileError;
use crate::memory;
use crate::port::Port;
use crate::preparation::Preparation;
use crate::settings;

/// How long a part of the map may take. The host asks the driver, too, if it hears nothing for a second, and both at once slow a small
/// guest down by seconds.
const PART_TIME: Duration = Duration::from_millis(100);
/// The fewest pages of a part: those that are read at once.
const LEAST_PART: u64 = 2048;

/// The agent cannot serve the host.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The port cannot be opened, or failed.
    #[error(transparent)]
    Port(#[from] io::Error),
    /// The kernel's tables cannot be read.
    #[error("cannot read which pages are free (/proc/kpageflags, as root): {0}")]
    PageFlags(#[source] io::Error),
    /// The file of `--key` is not a valid key.
    #[error("--key: {0}")]
    Key(#[from] KeyFileError),
    /// The host requires a key.
    #[error(
        "the host accepts only an agent with its key: give --key FILE, a copy of the device's --agent-key"
    )]
    KeyWanted,
    /// The host disconnected after the proof.
    #[error(
        "the host hung up after this agent's proof: is --key the device's --agent-key? It also hangs up while it serves \
         another agent of this guest"
    )]
    NotBelieved,
}

/// Serves hosts, one after the other.
#[derive(Debug)]
pub struct Session {
    settings: Settings,
    preparation: Preparation,
    pages: FreePages,
    zones: Vec<PageRange>,
    /// How many pages the next part has.
    part_pages: u64,
    input: Box<Deframer>,
    output: Box<[u8; MAX_FRAME]>,
    /// The key by which the host recognises the agent.
    key: Option<Key>,
    /// Whether a proof was sent and the host has sent no request since.
    is_on_trial: bool,
    was_asked: bool,
}

impl Session {
    /// Allocates all the memory that it needs. With a `key` the agent answers a host's challenge.
    ///
    /// # Errors
    /// [`SessionError::PageFlags`] if page flags cannot be read.
    pub fn new(preparation: Preparation, key: Option<Key>) -> Result<Self, SessionError> {
        let pages = FreePages::open().map_err(SessionError::PageFlags)?;
        let zones = memory::zones().map_err(SessionError::PageFlags)?;
        Ok(Self::of(preparation, key, pages, zones))
    }

    fn of(
        preparation: Preparation,
        key: Option<Key>,
        pages: FreePages,
        zones: Vec<PageRange>,
    ) -> Self {
        Self {
            settings: settings::detect(preparation),
            preparation,
            pages,
            zones,
            part_pages: LEAST_PART,
            input: Box::default(),
            output: Box::new([0; MAX_FRAME]),
            key,
            is_on_trial: false,
            was_asked: false,
        }
    }

    /// Logs what the kernel does with free pages, and what that means.
    pub fn explain(&self) {
        let flags = self.settings.flags;
        if !self.settings.free_pages_may_be_zero() {
            log::warn!(
                "this kernel fills free pages with a pattern that it checks (page_poison): the host is told, and \
                 sends them all"
            );
        }
        if flags & Settings::INIT_ON_ALLOC != 0 {
            log::info!(
                "this kernel zeroes pages when it allocates them: its balloon driver's hints cost a write of each \
                 page, this agent's do not"
            );
        }
    }

    /// Serves the host until it disconnects.
    ///
    /// # Errors
    /// [`SessionError`] if the port fails, or the host does not accept this agent.
    pub fn serve(&mut self, port: &Port) -> Result<(), SessionError> {
        self.is_on_trial = false;
        self.was_asked = false;
        match self.converse(port) {
            Ok(()) | Err(SessionError::Port(_)) if self.is_on_trial => {
                Err(SessionError::NotBelieved)
            }
            result => result,
        }
    }

    fn converse(&mut self, port: &Port) -> Result<(), SessionError> {
        self.input.restart();
        self.hello(port)?;
        let mut asked = None;
        loop {
            let ask = match asked.take() {
                Some(ask) => ask,
                None => match self.wait_for_ask(port)? {
                    Some(ask) => ask,
                    None => return Ok(()),
                },
            };
            if let Ask::Map { epoch, first } = ask {
                asked = self.answer(port, epoch, first)?;
            }
        }
    }

    /// Whether the host has asked anything over the last port. A port can be opened even if nobody has its other end open.
    pub fn was_asked(&self) -> bool {
        self.was_asked
    }

    /// Sends the map of all memory. Ends early if the host sends another request, which is returned.
    fn answer(
        &mut self,
        port: &Port,
        epoch: u64,
        first: bool,
    ) -> Result<Option<Ask>, SessionError> {
        let began = (Instant::now(), processor_time());
        if first {
            self.preparation.run();
            // Memory may have been plugged in or out since the last migration.
            self.zones = memory::zones().map_err(SessionError::PageFlags)?;
        }
        let mut totals = Totals::default();
        let zones = std::mem::take(&mut self.zones);
        let mut asked = None;
        let mut left = zones.iter().copied();
        let mut rest = left.next();
        while let Some(zone) = rest {
            asked = self.take_ask(port)?;
            if asked.is_some() {
                break;
            }
            let began = Instant::now();
            let (part, others) = split(zone, self.part_pages);
            rest = others.or_else(|| left.next());
            if let Err(error) = self.send_part(port, epoch, part, &mut totals)? {
                log::warn!("cannot read page flags: {error}");
                let errno = error.raw_os_error().unwrap_or_default() as u32;
                self.send(port, Answer::FAILED, epoch, &errno.to_le_bytes())?;
                self.zones = zones;
                return Ok(None);
            }
            self.part_pages = part_after(part.count(), began.elapsed());
        }
        self.zones = zones;
        if asked.is_none() {
            totals.elapsed_us = micros(began.0.elapsed());
            totals.cpu_us = micros(processor_time().saturating_sub(began.1));
            self.send(port, Answer::END, epoch, &totals.to_bytes())?;
        }
        Ok(asked)
    }

    /// Reads and sends one part. The inner error is that of reading page flags.
    fn send_part(
        &mut self,
        port: &Port,
        epoch: u64,
        part: PageRange,
        totals: &mut Totals,
    ) -> Result<io::Result<()>, SessionError> {
        let (words, free) = match self.pages.read(part) {
            Ok(read) => read,
            Err(error) => return Ok(Err(error)),
        };
        totals.read += part.count();
        totals.free += free;
        // A part without a free page is sent, too, because the host waits for every part.
        let payload = self.output[FRAME_HEADER_BYTES..].first_chunk_mut();
        let length = payload.map_or(0, |payload| map::encode(part, words, payload));
        let frame = frame::seal(&mut self.output, Answer::MAP, epoch, length);
        port.write_all(frame)?;
        totals.frames += 1;
        totals.bytes += frame.len() as u64;
        Ok(Ok(()))
    }

    fn hello(&mut self, port: &Port) -> Result<(), SessionError> {
        let settings = self.settings.to_bytes();
        self.send(port, Answer::HELLO, 0, &settings)
    }

    fn send(
        &mut self,
        port: &Port,
        kind: u16,
        epoch: u64,
        payload: &[u8],
    ) -> Result<(), SessionError> {
        let frame = Frame {
            kind,
            epoch,
            payload,
        };
        Ok(port.write_all(frame.encode(&mut self.output))?)
    }

    /// Waits for a request other than Hello; `None` if the host disconnects.
    fn wait_for_ask(&mut self, port: &Port) -> Result<Option<Ask>, SessionError> {
        loop {
            if let Some(ask) = self.asked(port)? {
                return Ok(Some(ask));
            }
            match port.readable(None) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(None),
                Err(error) => return Err(error.into()),
            }
            if !self.fill(port)? {
                return Ok(None);
            }
        }
    }

    /// The request that has arrived meanwhile, if any. Does not wait.
    fn take_ask(&mut self, port: &Port) -> Result<Option<Ask>, SessionError> {
        if port.readable(Some(Timespec::default()))? && !self.fill(port)? {
            return Err(io::Error::from(io::ErrorKind::BrokenPipe).into());
        }
        self.asked(port)
    }

    /// Reads once; `false` if the host has disconnected.
    fn fill(&mut self, port: &Port) -> Result<bool, SessionError> {
        match port.read(self.input.space())? {
            Some(0) => Ok(false),
            Some(count) => {
                self.input.filled(count);
                Ok(true)
            }
            None => Ok(true),
        }
    }

    /// Answers all Hellos that have arrived, and returns the last of the other requests.
    fn asked(&mut self, port: &Port) -> Result<Option<Ask>, SessionError> {
        let (mut asked, mut greeted) = (None, false);
        while let Some(frame) = self.input.next_frame() {
            if let Some(challenge) = Challenge::read(&frame) {
                let key = self.key.as_ref().ok_or(SessionError::KeyWanted)?;
                port.write_all(&key.prove(&challenge).to_frame())?;
                self.is_on_trial = true;
                continue;
            }
            match Ask::read(&frame) {
                Ok(Ask::Hello) => greeted = true,
                Ok(ask) => asked = Some(ask),
                Err(error) => log::warn!("the host sent {error}"),
            }
        }
        if greeted || asked.is_some() {
            self.is_on_trial = false;
            if !std::mem::replace(&mut self.was_asked, true) {
                log::info!("connected to the host");
            }
        }
        if greeted {
            self.hello(port)?;
        }
        Ok(asked)
    }
}

/// The first `pages` of `range`, and the rest.
fn split(range: PageRange, pages: u64) -> (PageRange, Option<PageRange>) {
    let first = PageRange::new(range.first(), pages.min(range.count()));
    let first = first.unwrap_or(range);
    let rest = PageRange::new(first.end(), range.end() - first.end());
    (first, rest)
}

/// How many pages are read at a time after `pages` have taken so long.
fn part_after(pages: u64, took: Duration) -> u64 {
    let in_time = pages as f64 * PART_TIME.as_secs_f64() / took.as_secs_f64().max(1e-6);
    (in_time as u64).clamp(LEAST_PART, MAX_MAP_PAGES.into()) / LEAST_PART * LEAST_PART
}

fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}

fn micros(time: Duration) -> u64 {
    time.as_micros() as u64
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;
    use std::os::unix::fs::FileExt;
    use std::os::unix::net::UnixStream;
    use std::thread;

    use super::*;

    /// The kernel's flag of a free page.
    const FREE: u64 = 1 << 10;

    /// The ranges that an agent reports in one answer, in order. `flags` are its kernel's, one word a page.
    fn told_of(flags: &[u64]) -> Vec<PageRange> {
        let file: File = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = flags.iter().flat_map(|flags| flags.to_ne_bytes()).collect();
        file.write_all_at(&bytes, 0).unwrap();
        let memory = PageRange::new(0, flags.len() as u64).unwrap();
        let preparation = Preparation::default();
        let mut session = Session::of(preparation, None, FreePages::of(file), vec![memory]);
        let (ours, mut host) = UnixStream::pair().unwrap();
        let agent = thread::spawn(move || session.serve(&Port::of(ours.into()).unwrap()));
        let ask = Ask::Map {
            epoch: 5,
            first: false,
        };
        host.write_all(&ask.to_frame()).unwrap();
        let mut input = Box::<Deframer>::default();
        let mut told = Vec::new();
        'answer: loop {
            let count = io::Read::read(&mut host, input.space()).unwrap();
            assert_ne!(count, 0, "the agent has gone");
            input.filled(count);
            while let Some(frame) = input.next_frame() {
                match Answer::read(&frame).unwrap() {
                    Answer::Map { map, .. } => told.push(map.range()),
                    Answer::End { .. } => break 'answer,
                    _ => {}
                }
            }
        }
        drop(host);
        agent.join().unwrap().unwrap();
        told
    }

    #[test]
    fn all_memory_is_sent_also_where_no_page_is_free_because_the_host_waits_for_it() {
        let pages = 3 * u64::from(MAX_MAP_PAGES) + 5;
        let mut flags = vec![FREE; pages as usize];
        flags[MAX_MAP_PAGES as usize..][..MAX_MAP_PAGES as usize].fill(0);
        let told = told_of(&flags);
        let end = told.iter().fold(0, |end, part| {
            assert_eq!(part.first(), end, "{told:?}");
            part.end()
        });
        assert_eq!(end, pages);
    }

    #[test]
    fn a_slow_guest_is_heard_of_as_often_as_a_fast_one() {
        // 25 microseconds a page.
        let took = |pages: u64| Duration::from_micros(25 * pages);
        let mut pages = u64::from(MAX_MAP_PAGES);
        for _ in 0..3 {
            pages = part_after(pages, took(pages));
        }
        assert!(took(pages) <= PART_TIME, "{pages}");
        assert!(took(pages) >= PART_TIME / 2, "{pages}");
        assert_eq!(part_after(LEAST_PART, Duration::from_secs(9)), LEAST_PART);
        assert_eq!(
            part_after(LEAST_PART, Duration::ZERO),
            u64::from(MAX_MAP_PAGES)
        );
    }
}
