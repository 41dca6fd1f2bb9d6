// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How fast the agent reads the kernel's page flags: from `/proc/kpageflags` to finished frames, compared with a bare
//! `read` of the same flags.
//!
//! Both take turns at every part of memory, so that noise affects both; a figure is the median of their ratios. Parts are
//! classified by their content. To have some of each kind, the bench fills memory of its own, and frees every second page
//! of some of it.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs::File;
use std::hint::black_box;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use lacuna_agent::free_pages::FreePages;
use lacuna_agent::memory;
use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, memfd_create};
use rustix::system::sysinfo;
use spec::PageRange;
use spec::agent::{Answer, FRAME_HEADER_BYTES, MAX_FRAME, frame, map};

/// The most memory that is filled, and the most that is fragmented; each is at most a quarter of the free memory.
const MOST: u64 = 2 << 30;
/// Pages of a part: 8 MiB.
const UNIT: u64 = 1 << 11;
/// How often each part is read by each of the two.
const TURNS: usize = 5;
const PAGE: u64 = spec::PAGE_SIZE;

/// The kind of a part of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    InUse,
    Free,
    Fragmented,
    Mixed,
}

/// One turn.
struct Pair {
    kind: Kind,
    pages: u64,
    bare: Duration,
    agent: Duration,
}

fn main() {
    let Ok(file) = File::open("/proc/kpageflags") else {
        println!("skipped: /proc/kpageflags cannot be read here");
        return;
    };
    let own = MOST.min(sysinfo().freeram / 4);
    let filled = memory_in_use(own);
    let fragmented = memory_in_use(own);
    for page in (0..own / PAGE).step_by(2) {
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(&fragmented, hole, page * PAGE, PAGE).unwrap();
    }
    let pairs = measure(&file);
    drop((filled, fragmented));
    println!("memory       parts  bare read (ns a page)  agent (ns a page)  agent's speed");
    for (name, kind) in [
        ("in use", Kind::InUse),
        ("free", Kind::Free),
        ("fragmented", Kind::Fragmented),
        ("mixed", Kind::Mixed),
    ] {
        print(name, pairs.iter().filter(|pair| pair.kind == kind));
    }
    print("all", pairs.iter());
}

fn memory_in_use(bytes: u64) -> File {
    let mut file = File::from(memfd_create("read_flags", MemfdFlags::CLOEXEC).unwrap());
    let block = vec![1; 1 << 20];
    for _ in 0..bytes / block.len() as u64 {
        file.write_all(&block).unwrap();
    }
    file
}

fn measure(file: &File) -> Vec<Pair> {
    let mut agent = Agent::new();
    let mut bytes = vec![0; UNIT as usize * 8];
    let mut pairs = Vec::new();
    for zone in memory::zones().unwrap() {
        for part in units(zone) {
            let bytes = &mut bytes[..part.count() as usize * 8];
            let kind = agent.kind(part);
            for turn in 0..TURNS {
                let bare = || {
                    let mut filled = 0;
                    while filled < bytes.len() {
                        let at = part.first() * 8 + filled as u64;
                        match file.read_at(&mut bytes[filled..], at).unwrap() {
                            0 => break,
                            count => filled += count,
                        }
                    }
                    black_box(&bytes);
                };
                let (bare, agent) = if turn % 2 == 0 {
                    let bare = time(bare);
                    (bare, time(|| agent.answer(part)))
                } else {
                    let agent = time(|| agent.answer(part));
                    (time(bare), agent)
                };
                pairs.push(Pair {
                    kind,
                    pages: part.count(),
                    bare,
                    agent,
                });
            }
        }
    }
    pairs
}

/// The parts that are wholly in `zone`.
fn units(zone: PageRange) -> impl Iterator<Item = PageRange> {
    let firsts = (zone.first().next_multiple_of(UNIT)..).step_by(UNIT as usize);
    let units = firsts.map_while(move |first| PageRange::new(first, UNIT));
    units.take_while(move |unit| unit.end() <= zone.end())
}

/// What the agent does for a request, without the port.
struct Agent {
    pages: FreePages,
    frame: Box<[u8; MAX_FRAME]>,
}

impl Agent {
    fn new() -> Self {
        Self {
            pages: FreePages::open().unwrap(),
            frame: Box::new([0; MAX_FRAME]),
        }
    }

    fn answer(&mut self, part: PageRange) {
        let (words, free) = self.pages.read(part).unwrap();
        if free != 0 {
            let payload = self.frame[FRAME_HEADER_BYTES..].first_chunk_mut().unwrap();
            let length = map::encode(part, words, payload);
            black_box(frame::seal(&mut self.frame, Answer::MAP, 1, length));
        }
    }

    fn kind(&mut self, part: PageRange) -> Kind {
        let (words, free) = self.pages.read(part).unwrap();
        let ends = words
            .iter()
            .map(|word| u64::from((word & !(word >> 1)).count_ones()));
        let runs = ends.sum::<u64>();
        match free * 100 / part.count() {
            0..=9 => Kind::InUse,
            90.. => Kind::Free,
            _ if runs * 4 > free => Kind::Fragmented,
            _ => Kind::Mixed,
        }
    }
}

fn time(work: impl FnOnce()) -> Duration {
    let begin = Instant::now();
    work();
    begin.elapsed()
}

fn print<'a>(name: &str, pairs: impl Iterator<Item = &'a Pair>) {
    let pairs: Vec<&Pair> = pairs.collect();
    if pairs.is_empty() {
        println!("{name:12} none here");
        return;
    }
    let a_page = |time: Duration, pair: &Pair| time.as_nanos() as f64 / pair.pages as f64;
    println!(
        "{name:12} {:5}  {:21.1}  {:17.1}  {:11.1} %",
        pairs.len() / TURNS,
        median(pairs.iter().map(|pair| a_page(pair.bare, pair))),
        median(pairs.iter().map(|pair| a_page(pair.agent, pair))),
        100.0
            * median(
                pairs
                    .iter()
                    .map(|pair| pair.bare.as_secs_f64() / pair.agent.as_secs_f64())
            ),
    );
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}
