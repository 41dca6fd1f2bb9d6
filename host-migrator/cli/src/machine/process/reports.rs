// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a machine's process says of itself: its status, the guest's own report, and the map of its memory.

use std::os::fd::AsRawFd;

use reference_vmm::guest_gaps;
use spec::PAGE_SIZE;
use spec::bare::StatusWord;

use super::Process;
use crate::args::GuestKind;
use crate::gaps::{GapFigures, ReadFigures};
use crate::machine::{FileRange, GuestStatus, MemoryMap, Status, VcpuStatus};

impl Process {
    /// Everything that `lacuna status` shows.
    pub(in crate::machine) fn status(&self) -> Status {
        // In this order, so that the state shown is not older than the end of the migration shown.
        let migration = self.outgoing.status();
        Status {
            machine: self.life.state(),
            ownership: self.ownership.get(),
            guest: self.guest_status(),
            vcpus: self.vcpus(),
            restore: self.restoring.status(),
            postcopy: self.postcopying.status(),
            incoming: self
                .life
                .incoming()
                .or_else(|| self.postcopying.listening()),
            incoming_tls: (self.listener.lock().as_ref())
                .is_some_and(|listener| listener.is_encrypted()),
            balloon_lost: self.balloon.as_ref().and_then(|balloon| balloon.lost()),
            migration,
        }
    }

    /// The guest's report, if the guest is here and up.
    fn guest_status(&self) -> Option<GuestStatus> {
        let (ready, failure) = self.life.of_guest();
        let said = match self.guest {
            GuestKind::Bare => self
                .bare_status()
                .map(|status| GuestStatus { ready, ..status }),
            GuestKind::Linux => {
                let report = self.report.lock().clone();
                report.map(|report| GuestStatus {
                    in_use_bytes: self.memory_bytes.saturating_sub(report.free_bytes),
                    ..report.status
                })
            }
        };
        match (said, failure) {
            (said, None) => said,
            (said, failure) => Some(GuestStatus {
                failure,
                ..said.unwrap_or_default()
            }),
        }
    }

    fn bare_status(&self) -> Option<GuestStatus> {
        let status = reference_vmm::GuestStatus::read(&self.ram())
            .ok()
            .flatten()?;
        let word = |which| status.word(which);
        // The guest's program and tables are below the first page that its allocator manages.
        let pages = word(StatusWord::InUse).saturating_add(word(StatusWord::FirstPage));
        Some(GuestStatus {
            ready: false,
            in_use_bytes: pages.saturating_mul(PAGE_SIZE),
            checks: word(StatusWord::Checks),
            wrong: word(StatusWord::WrongStamps).saturating_add(word(StatusWord::WrongHeartbeats)),
            full_passes: word(StatusWord::FullPasses),
            hint_rounds: word(StatusWord::HintRounds),
            hinted_pages: word(StatusWord::HintedPages),
            early_releases: word(StatusWord::EarlyReleases),
            dones: word(StatusWord::Dones),
            longest_gap: 0,
            clock_behind_ms: None,
            failure: None,
        })
    }

    fn vcpus(&self) -> Vec<VcpuStatus> {
        let mut vcpus: Vec<_> = self
            .watch
            .times()
            .into_iter()
            .map(VcpuStatus::from)
            .collect();
        if self.guest == GuestKind::Bare
            && let Ok(noticed) = guest_gaps::read(&self.ram(), vcpus.len() as u8)
        {
            for (vcpu, noticed) in vcpus.iter_mut().zip(noticed) {
                vcpu.gap_ms = Some(GapFigures::of(&noticed.gaps));
                vcpu.read_us = Some(ReadFigures::of(&noticed.reads));
            }
        }
        vcpus
    }

    /// Where the guest's memory is, and which pages the last migration skipped.
    pub(super) fn memory(&self) -> MemoryMap {
        let memory = self.memory.lock();
        let regions = (memory.files.iter())
            .map(|region| FileRange {
                gpa: region.gpa,
                len: region.len,
                fd: region.file.as_raw_fd(),
                offset: region.offset,
            })
            .collect();
        let report = self.outgoing.report();
        let skipped = report.and_then(|report| report.skipped.clone());
        let words = skipped
            .iter()
            .flat_map(|map| (0..map.word_count()).map(|index| map.load(index)));
        MemoryMap {
            regions,
            skipped: words.collect(),
        }
    }
}
