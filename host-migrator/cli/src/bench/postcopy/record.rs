// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What was measured: one JSON object, or a table.

use host_migrator::PostcopyReport;
use serde::Serialize;

use crate::args::{PostcopyArgs, PostcopyArm};
use crate::figures::{aligned, median};
use crate::measured_on::Machine;
use crate::size::Size;

/// One run of one arm.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Sample {
    /// Touches that waited, or rounds.
    pub(super) waits: u64,
    /// Microseconds that half of them did not exceed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) p50_us: Option<f64>,
    /// The same for 99 of 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) p99_us: Option<f64>,
    /// Pages a second: those that were touched, or that came.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) per_s: Option<f64>,
    /// Pages that the source was asked for, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) requests: Option<u64>,
    /// Pages that were compared with the source's, or with zeros.
    pub(super) pages_compared: u64,
    /// Those that were wrong. Anything but 0 is a bug.
    pub(super) pages_wrong: u64,
}

impl Sample {
    /// Of these `waits` in microseconds, the shortest first.
    pub(super) fn of_waits(waits: &[f64]) -> Self {
        let at = |share: f64| waits.get((waits.len() as f64 * share) as usize).copied();
        Self {
            waits: waits.len() as u64,
            p50_us: at(0.5),
            p99_us: at(0.99),
            ..Self::default()
        }
    }

    /// With what the source reports.
    pub(super) fn with(self, report: &PostcopyReport) -> Self {
        Self {
            requests: Some(report.requests),
            ..self
        }
    }
}

/// All runs of one arm.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct ArmRecord {
    /// The arm.
    #[serde(serialize_with = "as_name")]
    pub(super) arm: PostcopyArm,
    /// Its runs, in order.
    pub(super) samples: Vec<Sample>,
}

impl ArmRecord {
    /// A record without runs.
    pub(super) fn of(arm: PostcopyArm) -> Self {
        Self {
            arm,
            samples: Vec::new(),
        }
    }
}

/// A ratio of arms in the same turn.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Ratio {
    /// What is divided by what.
    pub(super) of: String,
    /// The median of all turns.
    pub(super) median: f64,
    /// The ratio of each turn.
    pub(super) turns: Vec<f64>,
}

/// A whole bench.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Report {
    /// Where.
    pub(super) machine: Machine,
    /// Bytes of memory.
    pub(super) size_bytes: u64,
    /// Pages that were touched in a run.
    pub(super) touches: u32,
    /// The seed of the content and of the order.
    pub(super) seed: u64,
    /// Turns.
    pub(super) runs: u32,
    /// Milliseconds that a byte took on the link of the push arms, each way.
    pub(super) delay_ms: u64,
    /// Bytes that might be on their way on one connection of that link.
    pub(super) window_bytes: u64,
    /// The arms, in the order of their runs.
    pub(super) arms: Vec<ArmRecord>,
    /// What the arms are compared for.
    pub(super) ratios: Vec<Ratio>,
}

/// A figure of a sample.
type Figure = fn(&Sample) -> Option<f64>;

const P50: Figure = |sample| sample.p50_us;
const P99: Figure = |sample| sample.p99_us;
const RATE: Figure = |sample| sample.per_s;

/// A figure of an arm.
type Of = (PostcopyArm, Figure);

/// What is divided by the sum of what.
const RATIOS: [(&str, Of, &[Of]); 7] = [
    (
        "fault / (ping-pong + bare-fault), p50",
        (PostcopyArm::Fault, P50),
        &[(PostcopyArm::PingPong, P50), (PostcopyArm::BareFault, P50)],
    ),
    (
        "fault-pushing, p99 / p50",
        (PostcopyArm::FaultPushing, P99),
        &[(PostcopyArm::FaultPushing, P50)],
    ),
    (
        "hinted / bare-zero, p50",
        (PostcopyArm::Hinted, P50),
        &[(PostcopyArm::BareZero, P50)],
    ),
    (
        "faults-2 / faults-1, pages a second",
        (PostcopyArm::Faults2, RATE),
        &[(PostcopyArm::Faults1, RATE)],
    ),
    (
        "faults-3 / faults-1, pages a second",
        (PostcopyArm::Faults3, RATE),
        &[(PostcopyArm::Faults1, RATE)],
    ),
    (
        "faults-4 / faults-1, pages a second",
        (PostcopyArm::Faults4, RATE),
        &[(PostcopyArm::Faults1, RATE)],
    ),
    (
        "push-4 / push-1, pages a second",
        (PostcopyArm::Push4, RATE),
        &[(PostcopyArm::Push1, RATE)],
    ),
];

impl Report {
    /// The report of `arms`.
    pub(super) fn new(args: &PostcopyArgs, machine: Machine, arms: Vec<ArmRecord>) -> Self {
        Self {
            machine,
            size_bytes: args.size.0,
            touches: args.touches.get(),
            seed: args.seed,
            runs: args.runs.get(),
            delay_ms: args.delay_ms,
            window_bytes: args.window.0,
            ratios: ratios(&arms),
            arms,
        }
    }

    /// The first arm that lost memory, and how many pages.
    pub(super) fn lost(&self) -> Option<(PostcopyArm, u64)> {
        self.arms.iter().find_map(|arm| {
            let wrong: u64 = arm.samples.iter().map(|sample| sample.pages_wrong).sum();
            (wrong > 0).then_some((arm.arm, wrong))
        })
    }

    /// A headline, a line for each arm, and one for each ratio.
    pub(super) fn text(&self) -> String {
        let mut text = format!(
            "a guest of {}, {} touches, {} turn(s), link of {} ms with {} under way; {} processors, Linux {}, load {:.2} before\n\n",
            Size(self.size_bytes),
            self.touches,
            self.runs,
            self.delay_ms,
            Size(self.window_bytes),
            self.machine.processors,
            self.machine.kernel,
            self.machine.load_before
        );
        text += &aligned(&HEADINGS, self.arms.iter().map(cells));
        text.push('\n');
        for ratio in &self.ratios {
            let turns: Vec<String> = ratio
                .turns
                .iter()
                .map(|turn| format!("{turn:.2}"))
                .collect();
            text += &format!(
                "{:<40} {:>6.2}   ({})\n",
                ratio.of,
                ratio.median,
                turns.join(", ")
            );
        }
        text
    }
}

const HEADINGS: [&str; 7] = [
    "arm",
    "waits",
    "p50 us",
    "p99 us",
    "pages/s",
    "requests",
    "wrong/compared",
];

fn cells(arm: &ArmRecord) -> Vec<String> {
    let of = |figure: Figure| {
        let values = arm.samples.iter().filter_map(figure);
        (values.clone().next()).map(|_| median(values))
    };
    let or_dash = |value: Option<f64>, digits: usize| {
        value.map_or("-".into(), |value| format!("{value:.digits$}"))
    };
    let sum = |of: fn(&Sample) -> u64| arm.samples.iter().map(of).sum::<u64>();
    vec![
        arm.arm.to_string(),
        or_dash(of(|sample| Some(sample.waits as f64)), 0),
        or_dash(of(P50), 1),
        or_dash(of(P99), 1),
        or_dash(of(RATE), 0),
        or_dash(of(|sample| sample.requests.map(|count| count as f64)), 0),
        match sum(|sample| sample.pages_compared) {
            0 => "-".into(),
            pages => format!("{}/{pages}", sum(|sample| sample.pages_wrong)),
        },
    ]
}

/// Those of [`RATIOS`] whose arms have all run, turn by turn.
fn ratios(arms: &[ArmRecord]) -> Vec<Ratio> {
    let figures = |(arm, figure): Of| -> Vec<f64> {
        let record = arms.iter().find(|record| record.arm == arm);
        let samples = record.into_iter().flat_map(|record| &record.samples);
        samples.filter_map(figure).collect()
    };
    let ratio = |(of, above, below): &(&str, Of, &[Of])| {
        let above = figures(*above);
        let below: Vec<Vec<f64>> = below.iter().copied().map(figures).collect();
        let in_turn = |turn: usize| {
            let sum: Option<f64> = below.iter().map(|arm| arm.get(turn)).sum();
            Some(above.get(turn)? / sum?)
        };
        let turns: Vec<f64> = (0..above.len()).map_while(in_turn).collect();
        (!turns.is_empty()).then(|| Ratio {
            of: (*of).to_owned(),
            median: median(turns.iter().copied()),
            turns,
        })
    };
    RATIOS.iter().filter_map(ratio).collect()
}

fn as_name<S: serde::Serializer>(arm: &PostcopyArm, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(arm)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arm(arm: PostcopyArm, p50: &[f64]) -> ArmRecord {
        let samples = p50.iter().map(|p50| Sample {
            p50_us: Some(*p50),
            ..Sample::default()
        });
        ArmRecord {
            arm,
            samples: samples.collect(),
        }
    }

    #[test]
    fn a_ratio_is_taken_turn_by_turn_and_only_of_arms_that_ran() {
        let ping_pong = arm(PostcopyArm::PingPong, &[10.0, 20.0, 10.0]);
        let fault = arm(PostcopyArm::Fault, &[40.0, 45.0, 60.0]);
        assert!(ratios(&[ping_pong.clone(), fault.clone()]).is_empty());
        let bare = arm(PostcopyArm::BareFault, &[10.0, 10.0, 20.0]);
        let ratios = ratios(&[ping_pong, bare, fault]);
        assert_eq!(ratios.len(), 1);
        assert_eq!(ratios[0].turns, [2.0, 1.5, 2.0]);
        assert_eq!(ratios[0].median, 2.0);
    }

    #[test]
    fn percentiles_are_of_the_longest_waits() {
        let waits: Vec<f64> = (0..200).map(f64::from).collect();
        let sample = Sample::of_waits(&waits);
        assert_eq!((sample.p50_us, sample.p99_us), (Some(100.0), Some(198.0)));
        assert_eq!(Sample::of_waits(&[]).p50_us, None);
    }
}
