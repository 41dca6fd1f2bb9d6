// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A VMM that has a migration loop of its own, and takes only the rule from this crate: `cargo run --example own_loop`.
//!
//! The guest is made of threads that write, free, hint and reuse pages while it is migrated. The destination is memory in
//! this process. In the end every page is compared.

#[path = "../tests/software_guest/mod.rs"]
mod software_guest;

use std::error::Error;
use std::sync::Arc;

use host_migrator::memory::bitmap::runs_of_word;
use host_migrator::rule::{Flush, Pass, Tellers, Tracker, put_back};
use host_migrator::{GuestMemory, GuestRam, MigrationBitmap, Source};
use software_guest::Guest;
use software_guest::memory::{Memory, like};
use software_guest::workload::{Behaviour, Workload};
use spec::PageRange;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const ROUNDS: usize = 3;

/// What the loop sends, and has not sent yet.
struct Copier<'a> {
    from: &'a GuestRam,
    to: &'a GuestRam,
    content: Vec<(PageRange, Vec<u8>)>,
    zero: Vec<PageRange>,
    /// Pages whose latest content was not sent because they are free.
    skipped: MigrationBitmap,
    copied: u64,
}

impl Copier<'_> {
    /// Claims the pending pages of the words from `first` on, up to `end`, and copies those that are needed.
    fn walk(&mut self, pass: &Pass<'_>, first: usize, end: usize) -> Result<()> {
        let words = pass.bitmap().occupied_from(first);
        for index in words.take_while(|index| *index < end) {
            let (base, claimed) = (index as u64 * 64, pass.claim(index, u64::MAX));
            for run in runs_of_word(base, claimed.rest) {
                let mut content = vec![0; run.bytes() as usize];
                self.from.read(run, &mut content)?;
                self.content.push((run, content));
                self.copied += run.count();
            }
            // The destination has older content of pages that are free now: it must not stay.
            let stale = claimed.stale | pass.copied(index, &claimed, 0).stale;
            self.zero.extend(runs_of_word(base, stale));
            self.skipped.clear(index, claimed.pages);
            self.skipped.merge(index, claimed.hinted.pages());
        }
        Ok(())
    }

    fn send(&mut self) -> Result<()> {
        for (run, content) in self.content.drain(..) {
            self.to.write(run, &content)?;
        }
        for run in self.zero.drain(..) {
            self.to.discard(run)?;
        }
        Ok(())
    }
}

impl Flush for Copier<'_> {
    type Error = Box<dyn Error>;

    fn flush(&mut self, _pass: &Pass<'_>) -> Result<()> {
        self.send()
    }
}

/// Migrates the memory of `source` into `copier`. The guest is stopped in the end.
fn migrate(source: &mut Source<'_>, copier: &mut Copier<'_>) -> Result<()> {
    let Source {
        machine,
        ram,
        logs,
        hints,
        trace,
        ..
    } = source;
    let hints = hints.as_deref_mut().map(|hints| hints as _);
    let mut tracker = Tracker::arm(ram.layout().regions(), logs, hints, Tellers::ALL, trace)?;
    let words = tracker.bitmap().word_count();
    for _ in 0..ROUNDS {
        let epoch = tracker.open();
        copier.walk(&epoch.pass(), 0, words / 2)?;
        // A harvest may come at any moment. What the guest has written is known, and it is asked for hints again.
        let (epoch, _) = epoch.sync(copier)?;
        copier.walk(&epoch.pass(), words / 2, words)?;
        epoch.end(copier)?;
    }
    machine.stop_vcpus()?;
    machine.stop_devices()?;
    tracker.last_harvest()?;
    copier.walk(&tracker.rest(), 0, words)?;
    copier.send()
}

fn main() -> Result<()> {
    match run()? {
        0 => Ok(()),
        wrong => Err(format!("{wrong} pages of the destination are not the guest's").into()),
    }
}

/// Migrates a guest that runs. Returns how many pages are wrong at the destination.
pub fn run() -> Result<usize> {
    let guest = Arc::new(Guest::new(Memory::new(4000, 2000)));
    for pfn in guest.memory.pages().filter(|pfn| pfn % 2 == 0) {
        guest.write(pfn);
    }
    let to = like(&guest.memory.ram);
    let workload = Workload::start(
        &guest,
        Behaviour {
            seed: 1,
            hints: true,
            pause: 1,
            first_page: 0,
        },
    );
    let mut copier = Copier {
        from: &guest.memory.ram,
        to: &to,
        content: Vec::new(),
        zero: Vec::new(),
        skipped: MigrationBitmap::new(to.bitmap_pages()),
        copied: 0,
    };
    let mut source = guest.source();
    let result = migrate(&mut source, &mut copier);
    // Whatever happened: logging stops, and the guest takes its pages back.
    put_back(&mut source.logs, source.hints.as_deref_mut(), &source.trace);
    result?;
    // Pages in use must be the same, skipped ones zero.
    let wrong = guest.memory.wrong_pages(&to, Some(&copier.skipped)).len();
    println!(
        "{} pages of memory, {} copied, {} skipped as free, {wrong} wrong",
        guest.memory.ram.pages(),
        copier.copied,
        copier.skipped.count()
    );
    source.machine.hand_over();
    workload.stop();
    Ok(wrong)
}
