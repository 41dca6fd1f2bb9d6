// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Every frame survives a round trip, and is refused if it is cut anywhere.

use std::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::balloon::CommandId;
use crate::hint_map::HintPhase;

const REQUESTS: [Request; 16] = [
    Request::Hello { version: VERSION },
    Request::SetHintMap { bytes: 1 << 40 },
    Request::Open { epoch: 1 },
    Request::Close { epoch: u64::MAX },
    Request::Done,
    Request::Status,
    Request::SetTarget { pages: u32::MAX },
    Request::SetStatisticsInterval { milliseconds: 2000 },
    Request::Statistics,
    Request::BalloonStatus,
    Request::HintStart,
    Request::HintStop,
    Request::HintState,
    Request::PageMap(PageSet::Hinted),
    Request::PageMap(PageSet::Ballooned),
    Request::PageMap(PageSet::Reported),
];

fn replies() -> Vec<Reply> {
    let status = DeviceStatus {
        features: 1 << 32,
        phase: HintPhase::Running,
        command_id: u32::MAX,
        broken_chains: 5,
        ..Default::default()
    };
    let report = EpochReport {
        epoch: 3,
        phase: HintPhase::Finished,
        pages: 8,
        agent_pages: 5,
        ..Default::default()
    };
    let balloon = BalloonStatus {
        offered: u64::MAX,
        running: true,
        target_pages: 7,
        bad_buffers: 9,
        ..Default::default()
    };
    let hints = HintState {
        phase: HintPhase::Done,
        holder: HintHolder::Person,
        ended: RoundEnd::Migrator,
        command_id: 1,
        rejected: 6,
        ..Default::default()
    };
    [
        Reply::Hello {
            version: VERSION,
            features: 0x1_0000_0008,
        },
        Reply::Ok,
        Reply::Opened {
            command_id: CommandId::FIRST,
        },
        Reply::Closed(report),
        Reply::Status(status),
        Reply::Statistics(Statistics::new(12, [(4, u64::MAX), (u16::MAX, 0)])),
        Reply::Statistics(Statistics::new(0, [])),
        Reply::Statistics(Statistics::new(1, [(0, 1); MAX_STATISTICS])),
        Reply::BalloonStatus(balloon),
        Reply::HintState(hints),
        Reply::PageMap { bytes: 4096 },
    ]
    .into_iter()
    .chain((1..16).map(|raw| Reply::Refused(Refusal::from_raw(raw).unwrap())))
    .collect()
}

fn header_and_payload(frame: &[u8]) -> (Header, &[u8]) {
    let header = Header::from_bytes(frame[..HEADER_BYTES].try_into().unwrap()).unwrap();
    (header, &frame[HEADER_BYTES..])
}

/// Encodes, decodes, and decodes every shorter and a longer payload.
fn check<T: Copy + PartialEq + core::fmt::Debug>(
    message: T,
    encode: fn(T, u32, &mut [u8; HEADER_BYTES + MAX_PAYLOAD]) -> usize,
    decode: fn(&Header, &[u8]) -> Result<T, ControlError>,
) {
    let mut frame = [0; HEADER_BYTES + MAX_PAYLOAD];
    let length = encode(message, 9, &mut frame);
    let (header, payload) = header_and_payload(&frame[..length]);
    assert_eq!(header.sequence, 9);
    assert_eq!(header.length as usize, payload.len());
    assert_eq!(decode(&header, payload), Ok(message));
    let longer = [payload, &[0]].concat();
    for other in (0..payload.len())
        .map(|cut| &payload[..cut])
        .chain([&longer[..]])
    {
        assert_ne!(decode(&header, other), Ok(message), "{} bytes", other.len());
    }
}

#[test]
fn every_request_survives_a_round_trip_and_no_cut_one_passes_for_it() {
    for request in REQUESTS {
        check(request, Request::encode, Request::decode);
    }
}

#[test]
fn every_reply_survives_a_round_trip_and_no_cut_one_passes_for_it() {
    for reply in replies() {
        check(reply, Reply::encode, Reply::decode);
    }
}

/// Only statistics have a variable length.
#[test]
fn a_payload_of_another_length_is_an_error() {
    for request in REQUESTS {
        let mut frame = [0; HEADER_BYTES + MAX_PAYLOAD];
        let length = request.encode(1, &mut frame);
        let (header, _) = header_and_payload(&frame[..length]);
        for other in (0..=MAX_PAYLOAD).filter(|&other| other != length - HEADER_BYTES) {
            let error = Request::decode(&header, &frame[HEADER_BYTES..][..other]).unwrap_err();
            let kind = header.kind;
            assert_eq!(
                error,
                ControlError::Length {
                    kind,
                    length: other
                }
            );
        }
    }
}

#[test]
fn values_that_a_field_cannot_have_are_errors() {
    let hints = Reply::HintState(HintState::default());
    let balloon = Reply::BalloonStatus(BalloonStatus::default());
    // The low byte of phase, holder, end; of connected, running.
    for (reply, at) in [
        (hints, 0),
        (hints, 4),
        (hints, 8),
        (balloon, 16),
        (balloon, 24),
    ] {
        let mut frame = [0; HEADER_BYTES + MAX_PAYLOAD];
        let length = reply.encode(1, &mut frame);
        frame[HEADER_BYTES + at] = 0xee;
        let (header, payload) = header_and_payload(&frame[..length]);
        let kind = header.kind;
        assert_eq!(
            Reply::decode(&header, payload),
            Err(ControlError::Value { kind })
        );
    }
    let header = Header {
        kind: 14,
        sequence: 0,
        length: 4,
    };
    assert_eq!(
        Request::decode(&header, &[4, 0, 0, 0]),
        Err(ControlError::Value { kind: 14 })
    );
}

proptest! {
    #[test]
    fn no_bytes_make_a_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 16..300), kind: u16) {
        let _ = Header::from_bytes(bytes[..16].try_into().unwrap());
        for kind in [kind & 0xff, kind & 0xf, 0x80 | kind & 0xf] {
            let header = Header { kind, sequence: 0, length: 0 };
            let _ = Request::decode(&header, &bytes[16..]);
            let _ = Reply::decode(&header, &bytes[16..]);
        }
    }
}
