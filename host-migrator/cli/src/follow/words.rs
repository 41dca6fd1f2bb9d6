// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An event in words.

use host_migrator::{MigrationEvent, TimedEvent};
use spec::PAGE_SIZE;

use crate::jobs::name_of;
use crate::size::Size;

/// When it happened, and what.
pub(super) fn of(event: &TimedEvent) -> String {
    format!("{:7.1} s  {}", event.ms as f64 / 1000.0, what(&event.event))
}

fn what(event: &MigrationEvent) -> String {
    match event {
        MigrationEvent::Migration { status, error_desc } => match error_desc {
            Some(why) => format!("{}: {why}", name_of(status)),
            None => name_of(status),
        },
        MigrationEvent::MigrationPass { pass, remaining } => {
            format!("round {pass} begins with {}", Size(*remaining))
        }
        MigrationEvent::DirtySync {
            background,
            dirty_pages,
            remaining,
            ..
        } => format!(
            "{}: {} dirtied, {} to go",
            match background {
                true => "harvest in mid-round",
                false => "harvest",
            },
            Size(dirty_pages * PAGE_SIZE),
            Size(*remaining)
        ),
        MigrationEvent::CpuThrottle { percentage: 0 } => "the guest has its full speed".into(),
        MigrationEvent::CpuThrottle { percentage } => {
            format!("the guest is throttled by {percentage} %")
        }
        MigrationEvent::VcpuDirtyLimit { bytes_per_second } => {
            format!("each vCPU dirties at most {}/s", Size(*bytes_per_second))
        }
        MigrationEvent::Decision { text } => format!("decision {text}"),
        other => format!("{other:?}"),
    }
}
