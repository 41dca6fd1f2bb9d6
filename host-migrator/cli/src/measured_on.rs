// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The machine on which something was measured.

use std::fs;

use serde::{Deserialize, Serialize};

/// The machine on which something was measured.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub(crate) struct Machine {
    /// The name of its processors.
    pub(crate) processor: String,
    /// Processors that this process may use.
    pub(crate) processors: usize,
    /// The kernel's release.
    pub(crate) kernel: String,
    /// Processes that ran or waited to run, averaged over the last minute before the measurement: other work makes figures
    /// worse.
    pub(crate) load_before: f64,
}

impl Machine {
    /// This machine now.
    pub(crate) fn now() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let load = read("/proc/loadavg");
        let about = read("/proc/cpuinfo");
        let name = about.lines().find(|line| line.starts_with("model name"));
        let name = name.and_then(|line| line.split_once(':'));
        Self {
            processor: name.map_or("unknown", |(_, name)| name.trim()).to_owned(),
            processors: std::thread::available_parallelism().map_or(0, usize::from),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            load_before: (load.split_whitespace().next())
                .and_then(|first| first.parse().ok())
                .unwrap_or(0.0),
        }
    }

    /// Its processors as a part of a file's name: `amd-epyc-2-cores`.
    pub(crate) fn slug(&self) -> String {
        let name = format!("{} {} cores", self.processor, self.processors);
        let words = name.split(|c: char| !c.is_ascii_alphanumeric());
        let words: Vec<_> = words
            .filter(|word| !word.is_empty())
            .map(str::to_lowercase)
            .collect();
        words.join("-")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_has_a_name_that_a_folder_can_have() {
        let machine = Machine {
            processor: "Some(R) CPU @ 2.5/GHz".into(),
            processors: 8,
            ..Machine::default()
        };
        assert_eq!(machine.slug(), "some-r-cpu-2-5-ghz-8-cores");
        assert!(Machine::now().slug().ends_with("-cores"));
    }
}
