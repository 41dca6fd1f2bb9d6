// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `lacuna balloon estimate`: what a migration of this guest would send, with hints and without, under any VMM.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use spec::control::PageSet;
use spec::hint_map::word_masks;
use spec::page_map::PageMap;
use spec::{PAGE_SIZE, PageRange};

use super::args::EstimateArgs;
use super::device::Device;
use super::{BalloonError, hints, print};
use crate::size::Size;

/// `lacuna balloon estimate`
pub(super) fn estimate(args: &EstimateArgs) -> Result<(), BalloonError> {
    let link = Link {
        bandwidth: args.bandwidth.0,
        dirty_rate: args.dirty_rate.0,
    };
    let mut device = Device::connect(&args.device)?;
    let asked = Instant::now();
    match hints::whole_round(&mut device, args.timeout) {
        Err(BalloonError::Timeout { after, .. }) => {
            let guest = Guest::look(&mut device)?;
            return Err(silent(after, guest, link));
        }
        other => other?,
    };
    let took = asked.elapsed();
    let guest = Guest::look(&mut device)?;
    print(
        args.device.json,
        &as_json(guest, link, took),
        &as_text(guest, link, took),
    )
}

/// What is said of a guest that has not told all its free pages in time.
fn silent(after: Duration, guest: Guest, link: Link) -> BalloonError {
    let free = match guest.free {
        0 => "has told no free page".into(),
        pages => format!("has told only {} of free pages", bytes(pages)),
    };
    BalloonError::Guest(format!(
        "the guest {free} in {:.1} s: it is busy or stopped, or its driver hangs. A migration without hints would send {}",
        after.as_secs_f64(),
        link.words(guest.without_hints())
    ))
}

/// The guest's memory, in pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Guest {
    memory: u64,
    /// In the balloon: holes, which every migration leaves out.
    ballooned: u64,
    /// Free, and not in the balloon.
    free: u64,
    /// Of the free ones, those that the device has given back to the host: holes, too.
    given_back: u64,
}

impl Guest {
    /// Reads what the device knows of the guest.
    fn look(device: &mut Device) -> Result<Self, BalloonError> {
        let mut read = |set| device.page_map(set);
        let hinted = read(PageSet::Hinted)?;
        let ballooned = read(PageSet::Ballooned)?;
        let reported = read(PageSet::Reported)?;
        let hinted = hinted.as_deref().map(PageMap::parse).transpose()?;
        let ballooned = ballooned.as_deref().map(PageMap::parse).transpose()?;
        let reported = reported.as_deref().map(PageMap::parse).transpose()?;
        let Some(memory) = ballooned.or(hinted) else {
            let text = "no VMM is connected to the balloon device: there is no guest memory";
            return Err(BalloonError::Guest(text.into()));
        };
        let word = |map: Option<PageMap<'_>>, index: usize| map.map_or(0, |map| map.word(index));
        let regions: Vec<PageRange> = memory.regions().collect();
        let count = |bits: &dyn Fn(usize) -> u64| -> u64 {
            let words = regions.iter().flat_map(|region| word_masks(*region));
            words
                .map(|(index, mask)| u64::from((bits(index) & mask).count_ones()))
                .sum()
        };
        let free = |index| word(hinted, index) & !word(ballooned, index);
        Ok(Self {
            memory: count(&|_| u64::MAX),
            ballooned: count(&|index| word(ballooned, index)),
            free: count(&free),
            given_back: count(&|index| free(index) & word(reported, index)),
        })
    }

    /// Pages that a migration without hints sends.
    fn without_hints(self) -> u64 {
        self.memory - self.ballooned - self.given_back
    }

    /// Pages that a migration with hints sends.
    fn with_hints(self) -> u64 {
        self.memory - self.ballooned - self.free
    }
}

/// How fast the migration is, and what the guest does meanwhile, in bytes a second.
#[derive(Clone, Copy, Debug)]
struct Link {
    bandwidth: u64,
    dirty_rate: u64,
}

impl Link {
    /// What is sent of `pages` with all that the guest writes meanwhile, and the seconds that it takes. `None`: the guest
    /// writes as fast as the link sends, and there is no end.
    fn sends(self, pages: u64) -> Option<(u64, f64)> {
        let left = self.bandwidth.checked_sub(self.dirty_rate)?;
        let seconds = (pages * PAGE_SIZE) as f64 / left as f64;
        let bytes = (seconds * self.bandwidth as f64) as u64;
        (left > 0).then_some((bytes, seconds))
    }

    fn words(self, pages: u64) -> String {
        match self.sends(pages) {
            Some((bytes, seconds)) => {
                let link = Size(self.bandwidth);
                format!("{} in {} at {link} a second", Size(bytes), time(seconds))
            }
            None => format!(
                "{}, and then without an end what the guest writes",
                bytes(pages)
            ),
        }
    }

    fn json(self, pages: u64) -> Value {
        let sent = self.sends(pages);
        json!({
            "pages": pages,
            "wire-bytes": sent.map(|(bytes, _)| bytes),
            "total-ms": sent.map(|(_, seconds)| (seconds * 1000.0) as u64),
        })
    }
}

fn as_json(guest: Guest, link: Link, took: Duration) -> Value {
    json!({
        "memory-bytes": guest.memory * PAGE_SIZE,
        "balloon-bytes": guest.ballooned * PAGE_SIZE,
        "free-bytes": guest.free * PAGE_SIZE,
        "given-back-bytes": guest.given_back * PAGE_SIZE,
        "hint-ms": took.as_millis() as u64,
        "bandwidth": link.bandwidth,
        "dirty-rate": link.dirty_rate,
        "without-hints": link.json(guest.without_hints()),
        "with-hints": link.json(guest.with_hints()),
    })
}

fn as_text(guest: Guest, link: Link, took: Duration) -> String {
    let (without, with) = (guest.without_hints(), guest.with_hints());
    let mut text = format!(
        "memory         {}, {} in the balloon\n\
         free           {}, told in {}\n\
         without hints  {}\n\
         with hints     {}\n",
        bytes(guest.memory),
        bytes(guest.ballooned),
        bytes(guest.free),
        time(took.as_secs_f64()),
        link.words(without),
        link.words(with)
    );
    if with < without {
        let saved = 100.0 * (without - with) as f64 / without as f64;
        text += &format!("hints save     {saved:.0} % of the bytes\n");
    }
    text += "Pages of zeros count in full here. They cost a migration next to nothing, with hints or without.\n";
    text
}

fn bytes(pages: u64) -> Size {
    Size(pages * PAGE_SIZE)
}

fn time(seconds: f64) -> String {
    match seconds < 10.0 {
        true => format!("{:.0} ms", seconds * 1000.0),
        false => format!("{seconds:.0} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUEST: Guest = Guest {
        memory: 1 << 19,
        ballooned: 1 << 17,
        free: 1 << 18,
        given_back: 1 << 16,
    };
    const TOOK: Duration = Duration::from_millis(80);

    #[test]
    fn what_is_left_out_without_hints_is_no_gain_of_hints() {
        assert_eq!(GUEST.without_hints(), (1 << 19) - (1 << 17) - (1 << 16));
        assert_eq!(GUEST.with_hints(), 1 << 17);
        let link = Link {
            bandwidth: 128 << 20,
            dirty_rate: 0,
        };
        let text = as_text(GUEST, link, TOOK);
        assert!(
            text.contains("1.25 GiB in 10 s at 128 MiB a second"),
            "{text}"
        );
        assert!(text.contains("512 MiB in 4000 ms"), "{text}");
        assert!(text.contains("hints save     60 %"), "{text}");
        let json = as_json(GUEST, link, TOOK);
        assert_eq!(json["with-hints"]["total-ms"], 4000);
        assert_eq!(json["with-hints"]["wire-bytes"], 512u64 << 20);
    }

    #[test]
    fn what_the_guest_writes_meanwhile_is_sent_too() {
        let link = |dirty_rate| Link {
            bandwidth: 100 << 20,
            dirty_rate,
        };
        let pages = (100 << 20) / PAGE_SIZE;
        assert_eq!(link(50 << 20).sends(pages), Some((200 << 20, 2.0)));
        for too_fast in [100 << 20, 101 << 20] {
            assert_eq!(link(too_fast).sends(pages), None);
            let text = as_text(GUEST, link(too_fast), TOOK);
            assert!(text.contains("without an end"), "{text}");
            let json = as_json(GUEST, link(too_fast), TOOK);
            assert_eq!(json["with-hints"]["total-ms"], Value::Null);
        }
    }
}
