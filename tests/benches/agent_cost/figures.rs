// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The figures, and their medians and ratios.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use serde_json::{Value, json};

use crate::MIB;

/// Who is asked for free pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Teller {
    /// Nobody is asked, for comparison.
    Nobody,
    Driver,
    Agent,
}

impl Teller {
    pub const ALL: [Self; 3] = [Self::Nobody, Self::Driver, Self::Agent];
}

/// The names of the figures.
const NAMES: [&str; 8] = [
    "told-mib",
    "answer-ms",
    "free-taken-mib",
    "lowest-available-mib",
    "longest-gap-ms",
    "stolen-ms",
    "allocation-median-us",
    "allocation-p99-us",
];

/// The figures of one measurement, in the order of [`NAMES`].
#[derive(Clone, Copy, Debug)]
pub struct Figures([f64; NAMES.len()]);

impl Figures {
    /// Computes the figures from the output of the guest's program, the time of the answer, and the number of pages.
    pub fn new(printed: &str, took: Duration, pages: u64) -> Result<Self, Box<dyn Error>> {
        let found: Value = serde_json::from_str(printed.trim())
            .map_err(|error| format!("the guest measured nothing ({error}): {printed}"))?;
        let number = |name: &str| {
            let value = found[name].as_f64();
            value.ok_or_else(|| format!("the guest did not measure {name}"))
        };
        let mib = MIB as f64;
        let taken = number("free-before")? - number("lowest-free")?;
        Ok(Self([
            (pages * spec::PAGE_SIZE) as f64 / mib,
            took.as_secs_f64() * 1000.0,
            taken / mib,
            number("lowest-available")? / mib,
            number("longest-gap-us")? / 1000.0,
            number("stolen-us")? / 1000.0,
            number("allocation-median-us")?,
            number("allocation-p99-us")?,
        ]))
    }
}

/// All measurements.
#[derive(Debug, Default)]
pub struct Results(Vec<(Teller, Figures)>);

impl Results {
    /// Adds one.
    pub fn add(&mut self, teller: Teller, figures: Figures) {
        self.0.push((teller, figures));
    }

    /// The figure of `teller` with this index, in rising order.
    fn sorted(&self, teller: Teller, index: usize) -> Vec<f64> {
        let of = self.0.iter().filter(|(of, _)| *of == teller);
        let mut values: Vec<f64> = of.map(|(_, Figures(values))| values[index]).collect();
        values.sort_by(f64::total_cmp);
        values
    }

    fn median(&self, teller: Teller, index: usize) -> f64 {
        let values = self.sorted(teller, index);
        values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
    }

    /// Every figure of every measurement, the medians and the ratios of driver to agent.
    pub fn to_json(&self) -> Value {
        let tellers = Teller::ALL.map(|teller| {
            let figures = NAMES.iter().enumerate().map(|(index, name)| {
                let values = json!({
                    "median": self.median(teller, index),
                    "all": self.sorted(teller, index),
                });
                ((*name).to_owned(), values)
            });
            let figures: serde_json::Map<String, Value> = figures.collect();
            (format!("{teller:?}").to_lowercase(), Value::from(figures))
        });
        let ratios = NAMES.iter().enumerate().map(|(index, name)| {
            let ratio = self.median(Teller::Driver, index) / self.median(Teller::Agent, index);
            ((*name).to_owned(), json!(ratio))
        });
        let mut all: serde_json::Map<String, Value> = tellers.into_iter().collect();
        all.insert("driver-by-agent".into(), Value::Object(ratios.collect()));
        Value::Object(all)
    }
}

impl fmt::Display for Results {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let epochs = self.sorted(Teller::Agent, 0).len();
        writeln!(
            f,
            "medians of {epochs:<3}             nobody     driver      agent   driver / agent"
        )?;
        for (index, name) in NAMES.iter().enumerate() {
            let [nobody, driver, agent] = Teller::ALL.map(|teller| self.median(teller, index));
            let ratio = driver / agent;
            writeln!(
                f,
                "{name:<22} {nobody:>10.1} {driver:>10.1} {agent:>10.1} {ratio:>16.2}"
            )?;
        }
        Ok(())
    }
}
