// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Compressed sections that no honest source sends: each is refused and named, and nothing of it gets into memory.
#![allow(clippy::unwrap_used)]

mod software_guest;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;

use host_migrator::{GuestRam, OwnershipRecord, receive};
use software_guest::machine::{DESCRIPTION, SoftDestination};
use software_guest::memory::{Memory, like};
use spec::stream::{
    CompressedPrefix, CompressionMethod, GREETING_BYTES, Greeting, PagesPrefix, SectionHeader,
    SectionKind, StreamHeader, run_to_bytes,
};
use spec::{PAGE_SIZE, PageRange};

const METHODS: [CompressionMethod; 2] = [CompressionMethod::Lz4, CompressionMethod::Zstd];
/// The pages that lies are about.
const FIRST: u64 = 8;

/// A section of compressed pages, each part of which can lie.
#[derive(Clone)]
struct Lie {
    method: CompressionMethod,
    first: u64,
    pages: u32,
    table_pages: u64,
    content_crc: u32,
    packed: Vec<u8>,
}

impl Lie {
    /// The truth about `pages` pages.
    fn truth(method: CompressionMethod, pages: u32) -> Self {
        let content = content(pages);
        Self {
            method,
            first: FIRST,
            pages,
            table_pages: pages.into(),
            content_crc: crc32fast::hash(&content),
            packed: packed(method, &content),
        }
    }

    fn payload(&self) -> Vec<u8> {
        let prefix = CompressedPrefix {
            method: self.method,
            runs: 1,
            pages: self.pages,
            content_crc: self.content_crc,
        };
        let run = PageRange::new(self.first, self.table_pages).unwrap();
        [&prefix.to_bytes()[..], &run_to_bytes(run), &self.packed].concat()
    }
}

fn content(pages: u32) -> Vec<u8> {
    let bytes = pages * PAGE_SIZE as u32;
    (0..bytes).map(|index| (index / 64) as u8 | 1).collect()
}

fn packed(method: CompressionMethod, content: &[u8]) -> Vec<u8> {
    match method {
        CompressionMethod::Lz4 => lz4_flex::block::compress(content),
        CompressionMethod::Zstd => zstd::bulk::compress(content, 1).unwrap(),
    }
}

/// What the destination says about a section of `kind` with `payload`, and its memory.
fn after(kind: SectionKind, payload: &[u8]) -> (String, Arc<GuestRam>) {
    let ram = Arc::new(like(&Memory::new(1024, 0).ram));
    let (mut source, there) = UnixStream::pair().unwrap();
    let theirs = Arc::clone(&ram);
    let destination = thread::spawn(move || {
        let (mut machine, ownership) = (SoftDestination::default(), OwnershipRecord::there());
        let connection = there.try_into().unwrap();
        receive(connection, &theirs, &mut machine, &ownership, &mut |_| ()).map(|_| ())
    });
    let mut greeting = [0; GREETING_BYTES];
    source.read_exact(&mut greeting).unwrap();
    let header = StreamHeader {
        session: Greeting::from_bytes(&greeting).unwrap().session,
        number: 0,
        ram_bytes: ram.pages() * PAGE_SIZE,
        regions: 1,
        channels: 0,
        local: false,
        lanes: 0,
    };
    source.write_all(&header.to_bytes()).unwrap();
    let sections: [(SectionKind, &[u8]); 4] = [
        (SectionKind::Layout, &ram.layout().to_bytes()),
        (SectionKind::Description, DESCRIPTION),
        (kind, payload),
        // Waits until everything before is in memory.
        (SectionKind::RoundEnd, &[]),
    ];
    for (sequence, (kind, payload)) in (0..).zip(sections) {
        let header = SectionHeader {
            kind,
            sequence,
            round: 1,
            length: payload.len() as u64,
            payload_crc: crc32fast::hash(payload),
        };
        // The destination may have closed the connection.
        let _ = source.write_all(&header.to_bytes());
        let _ = source.write_all(payload);
    }
    source.shutdown(Shutdown::Write).unwrap();
    let _ = source.read_to_end(&mut Vec::new());
    let error = destination.join().unwrap().unwrap_err().to_string();
    (error, ram)
}

fn memory(ram: &GuestRam, first: u64, pages: u64) -> Vec<u8> {
    let mut bytes = vec![0; (pages * PAGE_SIZE) as usize];
    let range = PageRange::new(first, pages).unwrap();
    ram.read(range, &mut bytes).unwrap();
    bytes
}

#[track_caller]
fn assert_refused(payload: &[u8], why: &str) {
    let (error, ram) = after(SectionKind::CompressedPages, payload);
    assert!(error.contains(why), "{error}");
    assert!(memory(&ram, 0, 1024).iter().all(|byte| *byte == 0));
}

#[test]
fn an_honest_section_is_placed() {
    for method in METHODS {
        for pages in [1, 2, 256] {
            let payload = Lie::truth(method, pages).payload();
            let (error, ram) = after(SectionKind::CompressedPages, &payload);
            assert!(error.contains("hung up"), "{error}");
            assert_eq!(memory(&ram, FIRST, pages.into()), content(pages));
        }
    }
}

#[test]
fn a_method_that_does_not_exist_is_named() {
    for method in [0u32, 3, u32::MAX] {
        let mut payload = Lie::truth(CompressionMethod::Lz4, 2).payload();
        payload[..4].copy_from_slice(&method.to_le_bytes());
        assert_refused(&payload, &format!("unknown compression method {method}"));
    }
}

#[test]
fn a_section_that_yields_more_or_fewer_pages_than_it_says_is_refused() {
    let invalid = "payload of a CompressedPages section is invalid";
    for method in METHODS {
        let truth = Lie::truth(method, 4);
        let lies = |pages, table_pages| Lie {
            pages,
            table_pages,
            ..truth.clone()
        };
        assert_refused(&lies(0, 4).payload(), invalid);
        assert_refused(&lies(4, 3).payload(), invalid);
        assert_refused(&lies(3, 4).payload(), invalid);
        assert_refused(&lies(257, 257).payload(), invalid);
        assert_refused(&lies(u32::MAX, 4).payload(), invalid);
        assert_refused(
            &lies(5, 5).payload(),
            "decompresses to 16384 bytes, and its pages have 20480",
        );
        assert_refused(&lies(3, 3).payload(), "cannot be decompressed");
    }
}

#[test]
fn a_bomb_is_refused() {
    for method in METHODS {
        let bomb = Lie {
            packed: packed(method, &vec![0; 128 << 20]),
            ..Lie::truth(method, 256)
        };
        assert!(bomb.packed.len() < 1 << 20);
        assert_refused(&bomb.payload(), "cannot be decompressed");
    }
}

#[test]
fn bytes_of_another_method_are_refused() {
    for [method, other] in [METHODS, [METHODS[1], METHODS[0]]] {
        let lie = Lie {
            method: other,
            ..Lie::truth(method, 4)
        };
        let (error, _) = after(SectionKind::CompressedPages, &lie.payload());
        let refusals = ["cannot be decompressed", "decompresses to", "checksum"];
        assert!(refusals.iter().any(|text| error.contains(text)), "{error}");
    }
}

#[test]
fn content_with_another_checksum_is_refused() {
    for method in METHODS {
        let truth = Lie::truth(method, 4);
        let lie = Lie {
            content_crc: truth.content_crc ^ 1,
            ..truth
        };
        assert_refused(&lie.payload(), "checksum of a section's decompressed pages");
    }
}

#[test]
fn nothing_of_a_section_with_a_flipped_bit_gets_into_memory() {
    for method in METHODS {
        let truth = Lie::truth(method, 4).payload();
        let before = CompressedPrefix::BYTES + 16;
        let bits = (before * 8..truth.len() * 8).step_by(37);
        for bit in bits {
            let mut payload = truth.clone();
            payload[bit / 8] ^= 1 << (bit % 8);
            let (error, ram) = after(SectionKind::CompressedPages, &payload);
            let pages = memory(&ram, FIRST, 4);
            // Some bits of a frame have no meaning.
            let harmless = error.contains("hung up") && pages == content(4);
            assert!(
                harmless || pages.iter().all(|byte| *byte == 0),
                "bit {bit}: {error}"
            );
        }
    }
}

#[test]
fn a_section_that_is_cut_off_is_refused() {
    for method in METHODS {
        let whole = Lie::truth(method, 4).payload();
        for length in [0, 15, 16, 31, 32, 33, whole.len() - 1] {
            let (error, ram) = after(SectionKind::CompressedPages, &whole[..length]);
            assert!(!error.contains("hung up"), "{length}: {error}");
            assert!(memory(&ram, 0, 1024).iter().all(|byte| *byte == 0));
        }
    }
}

#[test]
fn a_section_that_is_no_shorter_than_a_plain_one_is_refused() {
    let mut lie = Lie::truth(CompressionMethod::Lz4, 2);
    let plain = PagesPrefix { runs: 1, pages: 2 }.payload_bytes() as usize;
    lie.packed.resize(plain - CompressedPrefix::BYTES - 16, 0);
    assert_refused(
        &lie.payload(),
        "payload of a CompressedPages section is invalid",
    );
}

#[test]
fn pages_outside_memory_are_refused_before_they_are_decompressed() {
    for first in [1021, 1024, 1 << 40] {
        let lie = Lie {
            first,
            packed: vec![0xff; 20],
            ..Lie::truth(CompressionMethod::Zstd, 4)
        };
        let (error, _) = after(SectionKind::CompressedPages, &lie.payload());
        assert!(
            error.contains("not in guest memory") || error.contains("memory"),
            "{error}"
        );
        assert!(!error.contains("decompress"), "{error}");
    }
}
