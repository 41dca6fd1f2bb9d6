// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Migrations with compressed pages: nothing is lost, what does not shrink costs nothing on the wire, and the figures are true.
#![allow(clippy::unwrap_used)]

mod software_guest;

use std::os::unix::net::UnixStream;
use std::sync::Arc;

use host_migrator::{Compression, Migration, MigrationParams, PageSources, StoreSink, ZstdLevel};
use software_guest::memory::{Memory, like, one};
use software_guest::workload::{Behaviour, Workload};
use software_guest::{Guest, Outcome, migrate_on, rounds};
use spec::PAGE_SIZE;
use spec::stamp::Random;

const METHODS: [Compression; 3] = [
    Compression::Lz4,
    Compression::Zstd {
        level: ZstdLevel::MIN,
    },
    Compression::Zstd {
        level: ZstdLevel::new(3).unwrap(),
    },
];

/// More pages than a round on the control connection has.
const PAGES: u64 = 3000;

/// A guest that uses all of its memory. Half of its pages shrink.
fn guest() -> Arc<Guest> {
    Arc::new(Guest::with_all_written(Memory::new(PAGES, 700)))
}

/// A guest whose memory is random.
fn random_guest() -> Guest {
    let guest = Guest::new(Memory::new(PAGES, 0));
    let mut random = Random::new(3);
    for pfn in guest.memory.pages() {
        let words = std::iter::repeat_with(|| random.next().to_le_bytes()).take(512);
        let bytes: Vec<u8> = words.flatten().collect();
        guest.memory.ram.write(one(pfn), &bytes).unwrap();
    }
    guest
}

fn migrate(guest: &Guest, channels: u32, params: MigrationParams) -> Outcome {
    let streams = (0..=channels).map(|_| UnixStream::pair().unwrap());
    let ram = Arc::new(like(&guest.memory.ram));
    let params = params.with_multifd_channels(channels);
    let outcome = migrate_on(guest.source(), params, streams.collect(), ram);
    if let Err(error) = &outcome.sent {
        panic!("the migration failed: {error}");
    }
    assert!(outcome.received.is_ok() && outcome.destination.runs);
    assert_eq!(outcome.wrong_pages(&guest.memory), []);
    outcome
}

/// One round and the last one, in which nothing is written.
fn still() -> MigrationParams {
    rounds(1).with_sources(PageSources::ALL.without_hints())
}

#[test]
fn a_guest_that_writes_and_hints_arrives_whole() {
    for compression in METHODS {
        for hints in [false, true] {
            let guest = guest();
            let behaviour = Behaviour {
                seed: 21,
                hints,
                pause: 50,
                first_page: 0,
            };
            let workload = Workload::start(&guest, behaviour);
            let params = rounds(4).with_sync_pages(900);
            migrate(&guest, 0, params.with_compression(compression));
            workload.stop();
        }
    }
}

#[test]
fn compression_takes_bytes_off_the_wire_and_the_report_says_how_many() {
    for channels in [0, 2] {
        for compression in METHODS {
            let guest = guest();
            let plain = migrate(&guest, channels, still()).report().wire_bytes;
            // The guest has left that source for good.
            let guest = self::guest();
            let outcome = migrate(&guest, channels, still().with_compression(compression));
            let report = outcome.report();
            let said = report.compression.as_ref().unwrap();
            assert_eq!(said.method, compression.name());
            assert_eq!(said.zstd_level, compression.level().map(ZstdLevel::get));
            assert_eq!(said.pages, report.totals.pages_sent);
            let saved = said.pages * PAGE_SIZE - said.compressed_size;
            assert!(saved > 3 * said.pages * PAGE_SIZE / 10, "{said:?}");
            // Prefixes and heartbeats differ a little.
            let expected = plain - saved;
            assert!(
                report.wire_bytes.abs_diff(expected) < plain / 100,
                "{report:?}"
            );
            let rate = said.pages as f64 * 4096.0 / said.compressed_size as f64;
            assert_eq!(said.compression_rate, Some(rate));
        }
    }
}

#[test]
fn memory_that_does_not_shrink_takes_no_more_bytes_than_without_compression() {
    for channels in [0, 2] {
        let plain = migrate(&random_guest(), channels, still());
        assert_eq!(plain.report().compression, None);
        for compression in METHODS {
            let outcome = migrate(
                &random_guest(),
                channels,
                still().with_compression(compression),
            );
            let report = outcome.report();
            let said = report.compression.as_ref().unwrap();
            assert_eq!((said.pages, said.compressed_size), (0, 0));
            assert_eq!(said.compression_rate, None);
            let (ours, theirs) = (report.wire_bytes, plain.report().wire_bytes);
            assert!(ours.abs_diff(theirs) < theirs / 100, "{ours} and {theirs}");
        }
    }
}

#[test]
fn a_copy_into_a_store_is_not_compressed() {
    let guest = guest();
    let store = like(&guest.memory.ram);
    let mut sink = StoreSink::new(&store).unwrap();
    let params = still().with_compression(Compression::Lz4);
    let report = Migration::copy(&mut guest.source(), &params, &mut sink).unwrap();
    assert_eq!(report.compression, None);
    assert_eq!(guest.memory.wrong_pages(&store, None), []);
}
