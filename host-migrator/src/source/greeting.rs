// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The source's introduction: both sides make sure that they mean the same guest, and the channels join.

use std::sync::Arc;
use std::time::{Duration, Instant};

use spec::PAGE_SIZE;
use spec::stream::{GREETING_BYTES, Greeting, MAX_DESCRIPTION, Nonce, SectionKind, StreamHeader};

use super::error::MigrationError;
use super::guest::Source;
use super::postcopy::joining::{self, Session};
use super::postcopy::switchover::Lanes;
use crate::rule::clause::Clause;
use crate::sink::channels::Channels;
use crate::sink::link::Link;
use crate::source::params::MigrationParams;
use crate::wire::SectionError;

/// How long a channel may take to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Introduces the guest of `source`. The destination has accepted it afterwards, and all channels and lanes have joined. Returns how
/// long an answer has taken, and the lanes.
pub(super) fn greet(
    link: &mut Link,
    source: &mut Source<'_>,
    params: &MigrationParams,
) -> Result<(Duration, Option<Lanes>), MigrationError> {
    let description = source.machine.describe()?;
    if description.len() as u64 > MAX_DESCRIPTION {
        return Err(MigrationError::DescriptionTooLarge(description.len()));
    }
    let greeting: [u8; GREETING_BYTES] = link.peer.start()?;
    let Greeting { session } = Greeting::from_bytes(&greeting).map_err(SectionError::from)?;
    let layout = source.ram.layout();
    let (channels, lanes) = (params.channels(), params.lanes());
    let header = StreamHeader {
        session,
        number: source.ownership.begin(session),
        ram_bytes: layout.pages() * PAGE_SIZE,
        regions: layout.regions().len() as u32,
        channels,
        local: params.local,
        lanes,
    };
    link.compress(params.compression)?;
    link.out.start(&header.to_bytes())?;
    link.start_heartbeats()?;
    let asked = Instant::now();
    link.out
        .section(SectionKind::Layout, [&layout.to_bytes()])?;
    link.out.section(SectionKind::Description, [&description])?;
    let nonce = link.peer.expect_payload(SectionKind::Accept, "Accept")?;
    let round_trip = asked.elapsed();
    if channels + lanes == 0 {
        return Ok((round_trip, None));
    }
    let nonce = Nonce::from_bytes(&nonce).ok_or(MigrationError::NoChannels)?;
    let connect = || link.redial.another(CONNECT_TIMEOUT);
    let joined = match channels {
        0 => None,
        _ => Some(
            Channels::join(channels, connect, nonce, params.compression)
                .map_err(MigrationError::Join)?,
        ),
    };
    let session = Session {
        nonce,
        first: channels,
        lanes,
    };
    let lanes = match lanes {
        0 => None,
        _ => Some(Lanes {
            session,
            joined: joining::join(session, connect, params.peer_timeout)?,
            ram: Arc::clone(&source.ram),
        }),
    };
    link.peer.expect(SectionKind::Joined, "Joined")?;
    if let Some(joined) = joined {
        let drains = params.clauses().hold(Clause::DrainChannels);
        link.fan_out(joined, drains)?;
    }
    Ok((round_trip, lanes))
}
