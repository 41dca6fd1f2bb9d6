// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Tests of the stream's bytes.

use super::*;
use proptest::prelude::*;

fn section() -> SectionHeader {
    SectionHeader {
        kind: SectionKind::Pages,
        sequence: 7,
        round: 2,
        length: 4120,
        payload_crc: 99,
    }
}

#[test]
fn headers_survive_a_round_trip() {
    let greeting = Greeting {
        session: 0x1234_5678_9abc_def0,
    };
    assert_eq!(Greeting::from_bytes(&greeting.to_bytes()), Ok(greeting));
    let header = StreamHeader {
        session: 5,
        ram_bytes: 2 << 30,
        regions: 2,
        number: 3,
        channels: 2,
        local: false,
        lanes: 0,
    };
    assert_eq!(StreamHeader::from_bytes(&header.to_bytes()), Ok(header));
    assert_eq!(
        SectionHeader::from_bytes(&section().to_bytes()),
        Ok(section())
    );
    let totals = Totals {
        pages_sent: 1,
        pages_zero: 2,
        pages_discarded: 3,
        rounds: 4,
        bytes: 5,
    };
    assert_eq!(Totals::from_bytes(&totals.to_bytes()), Ok(totals));
}

#[test]
fn a_flipped_bit_anywhere_in_a_header_is_found() {
    let good = section().to_bytes();
    for bit in 0..good.len() * 8 {
        let mut bad = good;
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(SectionHeader::from_bytes(&bad).is_err(), "bit {bit}");
    }
    let good = StreamHeader {
        session: 5,
        ram_bytes: 2 << 30,
        regions: 2,
        number: 3,
        channels: 2,
        local: false,
        lanes: 0,
    }
    .to_bytes();
    for bit in 0..good.len() * 8 {
        let mut bad = good;
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(StreamHeader::from_bytes(&bad).is_err(), "bit {bit}");
    }
}

fn channel() -> ChannelHeader {
    ChannelHeader {
        session: 6,
        nonce: Nonce::new([0xee; Nonce::BYTES]),
        channel: 127,
    }
}

#[test]
fn an_introduction_is_a_source_or_a_channel() {
    let bytes = channel().to_bytes();
    assert_eq!(ChannelHeader::from_bytes(&bytes), Ok(channel()));
    let introduced = Introduction::from_bytes(&bytes);
    assert_eq!(introduced, Ok(Introduction::Channel(channel())));
    for bit in 0..bytes.len() * 8 {
        let mut bad = bytes;
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(Introduction::from_bytes(&bad).is_err(), "bit {bit}");
    }
}

#[test]
fn more_channels_than_there_may_be_are_refused() {
    let channel = ChannelHeader {
        channel: MAX_CHANNELS + MAX_LANES,
        ..channel()
    };
    let refused = ChannelHeader::from_bytes(&channel.to_bytes());
    assert_eq!(refused, Err(StreamError::Field("channel")));
    let header = StreamHeader {
        session: 5,
        ram_bytes: 4096,
        regions: 1,
        number: 0,
        channels: MAX_CHANNELS + 1,
        local: false,
        lanes: 0,
    };
    let refused = StreamHeader::from_bytes(&header.to_bytes());
    assert_eq!(refused, Err(StreamError::Field("channels")));
}

fn local() -> StreamHeader {
    StreamHeader {
        session: 5,
        ram_bytes: 4096,
        regions: 1,
        number: 0,
        channels: 0,
        local: true,
        lanes: 0,
    }
}

#[test]
fn a_source_says_that_it_lends_its_memory_and_then_has_no_channels() {
    assert_eq!(StreamHeader::from_bytes(&local().to_bytes()), Ok(local()));
    let with_channels = StreamHeader {
        channels: 2,
        ..local()
    };
    let refused = StreamHeader::from_bytes(&with_channels.to_bytes());
    assert_eq!(refused, Err(StreamError::Field("channels")));
}

#[test]
fn flags_that_this_build_does_not_know_are_refused() {
    for bit in 1..32 {
        let mut bytes = local().to_bytes();
        wire::put(&mut bytes, 48, &(1u32 << bit).to_le_bytes());
        wire::seal(&mut bytes);
        let refused = StreamHeader::from_bytes(&bytes);
        assert_eq!(refused, Err(StreamError::Field("flags")), "bit {bit}");
    }
}

#[test]
fn a_table_of_lent_memory_has_an_entry_for_each_region() {
    let table = [7 << 12, 0].map(lent_to_bytes).concat();
    let read = lent(&table, 2).map(Iterator::collect);
    assert_eq!(read, Ok(std::vec![7 << 12, 0]));
    for (bytes, regions) in [(&table[..], 1), (&table[..], 3), (&table[..15], 2)] {
        let refused = lent(bytes, regions).err();
        assert_eq!(refused, Some(StreamError::Malformed(SectionKind::Memory)));
    }
}

#[test]
fn a_nonce_is_never_shown() {
    let shown = std::format!("{:?}", channel());
    assert!(!shown.contains("238") && !shown.contains("ee,"), "{shown}");
}

#[test]
fn another_version_is_named_in_the_error() {
    let mut bytes = Greeting { session: 1 }.to_bytes();
    bytes[8] = 1;
    assert_eq!(Greeting::from_bytes(&bytes), Err(StreamError::Version(1)));
}

#[test]
fn a_length_that_the_kind_cannot_have_is_refused() {
    let long = SectionHeader {
        kind: SectionKind::Ready,
        length: 1,
        ..section()
    };
    assert_eq!(
        SectionHeader::from_bytes(&long.to_bytes()),
        Err(StreamError::TooLong {
            kind: SectionKind::Ready,
            length: 1
        })
    );
}

proptest! {
    #[test]
    fn a_prefix_is_taken_only_if_it_fills_the_section(runs in 0u32..300, pages in 0u32..300, length in 0u64..2_000_000) {
        let prefix = PagesPrefix { runs, pages };
        let good = runs >= 1 && runs <= pages && pages <= 256 && prefix.payload_bytes() == length;
        prop_assert_eq!(PagesPrefix::from_bytes(&prefix.to_bytes(), length).is_ok(), good);
        let exact = prefix.payload_bytes();
        let good = runs >= 1 && runs <= pages && pages <= 256;
        prop_assert_eq!(PagesPrefix::from_bytes(&prefix.to_bytes(), exact).is_ok(), good);
    }

    #[test]
    fn tables_of_any_bytes_give_ranges_or_errors(table in proptest::collection::vec(any::<u8>(), 0..100)) {
        for run in runs(SectionKind::Zero, &table).flatten() {
            prop_assert!(run.count() > 0 && run.end() >= run.first());
        }
    }
}

#[test]
fn lanes_of_a_postcopy_are_at_least_two_and_a_lent_memory_has_none() {
    let header = |lanes, local| StreamHeader {
        session: 5,
        ram_bytes: 4096,
        regions: 1,
        number: 0,
        channels: 0,
        local,
        lanes,
    };
    for lanes in [0, 2, MAX_LANES] {
        let header = header(lanes, false);
        assert_eq!(StreamHeader::from_bytes(&header.to_bytes()), Ok(header));
    }
    for refused in [
        header(1, false),
        header(MAX_LANES + 1, false),
        header(2, true),
    ] {
        let refused = StreamHeader::from_bytes(&refused.to_bytes());
        assert_eq!(refused, Err(StreamError::Field("lanes")));
    }
}
