// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a `migrate` command asks for, as the engine takes it.

use std::num::{NonZeroU32, NonZeroUsize};
use std::os::fd::OwnedFd;
use std::thread;
use std::time::Duration;

use host_migrator::{MAX_CHANNELS, MigrationParams, PageSource, PageSources, SnapshotTarget};
use spec::PAGE_SIZE;

use crate::control::MigrateArguments;

/// The file that the guest is to be saved into.
pub(super) fn file(
    arguments: &MigrateArguments,
    descriptors: &[OwnedFd],
) -> Result<SnapshotTarget, String> {
    if arguments.postcopy.is_some() {
        return Err("a guest that is saved into a file stays here: leave out postcopy".into());
    }
    if arguments.local || arguments.tls()?.is_some() || !descriptors.is_empty() {
        return Err(
            "a guest is saved into a file without a connection: leave out local, TLS and sockets"
                .into(),
        );
    }
    arguments.uri.parse().map_err(text)
}

pub(super) fn params(arguments: &MigrateArguments) -> Result<MigrationParams, String> {
    if let Some(slow) = arguments.max_bandwidth.filter(|&bytes| bytes < PAGE_SIZE) {
        return Err(format!(
            "a max-bandwidth of {slow} bytes a second is less than one page: leave it out to use all that the link has"
        ));
    }
    if arguments.postcopy.is_some() && arguments.local {
        return Err(
            "a guest whose memory is lent is handed over with it: leave out postcopy or local"
                .into(),
        );
    }
    let channels = arguments.multifd_channels.unwrap_or_else(default_channels);
    if !(1..=MAX_CHANNELS).contains(&channels) {
        return Err(format!(
            "multifd-channels is {channels}, and must be 1 to {MAX_CHANNELS}"
        ));
    }
    let compression = arguments.multifd_compression;
    let limit = Duration::from_millis(arguments.downtime_limit);
    let params = MigrationParams::default().with_downtime_limit(limit);
    let tuning = arguments.tuning().on(params.tuning())?;
    let params = params
        .with_auto_converge(tuning.auto_converge)
        .with_vcpu_dirty_limit(tuning.vcpu_dirty_limit)
        .with_goals(tuning.goals)
        .with_sync_interval(tuning.sync_interval)
        .with_multifd_channels(channels)
        .with_compression(compression.with_level(arguments.multifd_zstd_level)?)
        .with_max_bandwidth(arguments.max_bandwidth)
        .with_switchover_timeout(arguments.switchover_timeout.map(Duration::from_millis))
        .with_early_harvests(arguments.early_harvests)
        .with_max_rounds(arguments.max_rounds.map(NonZeroU32::get))
        .with_wait_for_hints(
            arguments
                .wait_for_hints
                .map(|wait| Duration::from_secs(wait.into())),
        )
        .with_postcopy(arguments.postcopy)
        .with_max_postcopy_bandwidth(arguments.max_postcopy_bandwidth)
        .with_sources(arguments.hints.sources(arguments.sources))
        .with_map_rounds(arguments.map_rounds)
        .with_local(arguments.local);
    #[cfg(clause_switches)]
    let params = params.with_switched_off(
        (arguments.switched_off.iter())
            .map(|name| host_migrator::rule::clause::switch(name).map_err(text))
            .collect::<Result<_, _>>()?,
    );
    Ok(params)
}

/// Two channels keep two processors busy. More help only where a channel is slower than a processor.
fn default_channels() -> u32 {
    let processors = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    processors.min(2) as u32
}

/// Whether a source other than zero pages is used. The device has the guest's hints, and knows which holes it made.
pub(super) fn needs_the_device(sources: PageSources) -> bool {
    sources.without(PageSource::Zero) != PageSources::NONE
}

pub(super) fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}
