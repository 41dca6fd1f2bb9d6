// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A suite of scenarios, as a TOML file. Each scenario has a name, a text, and flags of `lacuna compare` by their long names.
//!
//! ```toml
//! name = "mine"
//! runs = 3
//!
//! [all]                     # for every scenario that does not say otherwise
//! memory = "512M"
//!
//! [[scenario]]
//! name = "freed"
//! about = "Three quarters of memory were written and freed."
//! in-use = "64M"
//! freed = "384M"
//! ```

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use clap::{ArgAction, Args, Command, FromArgMatches};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::args::CompareArgs;

/// The suites that are part of this program.
const BUILT_IN: [(&str, &str); 2] = [
    ("quick", include_str!("quick.toml")),
    ("full", include_str!("full.toml")),
];
/// The most bytes of a file. Suites are much smaller.
const MOST_BYTES: u64 = 1 << 20;
/// Keys of a scenario that are no flags.
const OWN_KEYS: [&str; 2] = ["name", "about"];
/// Flags that mean nothing in a scenario, because they are about all of them.
const OF_THE_WHOLE: [&str; 7] = [
    "suite", "record", "report", "runs", "json", "picture", "help",
];

/// A suite that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SuiteError {
    /// The file cannot be read.
    #[error("cannot read the suite {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The text is not a suite.
    #[error("{place}, line {line}: {why}")]
    Text {
        /// The file, or the name of a built-in suite.
        place: String,
        /// The line, from 1.
        line: usize,
        /// What is wrong, with the name of the field.
        why: String,
    },
}

/// Scenarios to be run and compared.
#[derive(Clone, Debug)]
pub struct Suite {
    /// Its name.
    pub name: String,
    /// Runs of each mode of each scenario.
    pub runs: u32,
    /// The scenarios.
    pub scenarios: Vec<Scenario>,
}

/// A guest with its work, and a way to migrate it.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// Its name.
    pub name: String,
    /// What it is about.
    pub about: String,
    /// The flags.
    pub args: CompareArgs,
}

impl Suite {
    /// The suite of this `name`, or in the file at this path. `flags` of the command line count more than those of the suite.
    ///
    /// # Errors
    /// [`SuiteError`] if there is no such file, or something in it is wrong.
    pub fn load(name: &Path, flags: &[OsString]) -> Result<Self, SuiteError> {
        let built_in = BUILT_IN.iter().find(|(known, _)| name == Path::new(known));
        if let Some((name, text)) = built_in {
            return Self::parse(name, text, flags);
        }
        let failed = |source| SuiteError::Read {
            path: name.to_owned(),
            source,
        };
        let mut text = String::new();
        let file = File::open(name).map_err(failed)?;
        let read = file.take(MOST_BYTES + 1).read_to_string(&mut text);
        if read.map_err(failed)? as u64 > MOST_BYTES {
            let why = format!("a suite has at most {MOST_BYTES} bytes");
            return Err(failed(io::Error::new(io::ErrorKind::FileTooLarge, why)));
        }
        Self::parse(&name.display().to_string(), &text, flags)
    }

    /// The suite that `text` describes; `place` says in errors where it stands.
    fn parse(place: &str, text: &str, flags: &[OsString]) -> Result<Self, SuiteError> {
        let reader = Reader { place, text };
        let table = DeTable::parse(text).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start);
            reader.error(at, error.message().to_owned())
        })?;
        let mut suite = Self {
            name: Path::new(place)
                .file_stem()
                .map_or_else(|| place.to_owned(), |stem| stem.to_string_lossy().into()),
            runs: 3,
            scenarios: Vec::new(),
        };
        let mut all = BTreeMap::new();
        let mut scenarios = Vec::new();
        for (key, value) in table.get_ref() {
            match key.get_ref().as_ref() {
                "name" => suite.name = reader.text_of("name", value)?,
                "runs" => suite.runs = reader.count("runs", value)?,
                "all" => all = reader.flags("all", value)?,
                "scenario" => scenarios = reader.array("scenario", value)?,
                other => {
                    let why = format!("`{other}` is none of name, runs, all and scenario");
                    return Err(reader.error(key.span().start, why));
                }
            }
        }
        for value in scenarios {
            let scenario = reader.scenario(value, &all, flags)?;
            if (suite.scenarios.iter()).any(|other| other.name == scenario.name) {
                let why = format!(
                    "`name`: another scenario is called {:?}, too",
                    scenario.name
                );
                return Err(reader.error(value.span().start, why));
            }
            suite.scenarios.push(scenario);
        }
        if suite.scenarios.is_empty() {
            return Err(reader.error(0, "`scenario`: there is none".into()));
        }
        Ok(suite)
    }
}

/// Flags by name, each with the place where it stands.
type Flags<'t> = BTreeMap<String, (usize, &'t Spanned<DeValue<'t>>)>;

/// Reads the text of a suite.
struct Reader<'t> {
    place: &'t str,
    text: &'t str,
}

impl<'t> Reader<'t> {
    /// An error at byte `at` of the text.
    fn error(&self, at: usize, why: String) -> SuiteError {
        let before = self.text.get(..at).unwrap_or_default();
        SuiteError::Text {
            place: self.place.to_owned(),
            line: before.matches('\n').count() + 1,
            why,
        }
    }

    fn wrong(&self, key: &str, value: &Spanned<DeValue<'_>>, wanted: &str) -> SuiteError {
        let found = value.get_ref().type_str();
        self.error(
            value.span().start,
            format!("`{key}` is a {found}, and must be {wanted}"),
        )
    }

    fn text_of(&self, key: &str, value: &Spanned<DeValue<'_>>) -> Result<String, SuiteError> {
        let text = value.get_ref().as_str().filter(|text| !text.is_empty());
        text.map(ToOwned::to_owned)
            .ok_or_else(|| self.wrong(key, value, "a text that is not empty"))
    }

    fn count(&self, key: &str, value: &Spanned<DeValue<'_>>) -> Result<u32, SuiteError> {
        let number = value.get_ref().as_integer();
        let number = number.and_then(|it| it.as_str().parse().ok());
        number
            .filter(|count| (1..=1000).contains(count))
            .ok_or_else(|| self.wrong(key, value, "a number from 1 to 1000"))
    }

    fn array(
        &self,
        key: &str,
        value: &'t Spanned<DeValue<'t>>,
    ) -> Result<Vec<&'t Spanned<DeValue<'t>>>, SuiteError> {
        let array = value.get_ref().as_array();
        let array = array.ok_or_else(|| self.wrong(key, value, "written as [[scenario]]"))?;
        Ok(array.iter().collect())
    }

    fn flags(&self, key: &str, value: &'t Spanned<DeValue<'t>>) -> Result<Flags<'t>, SuiteError> {
        let table = value.get_ref().as_table();
        let table = table.ok_or_else(|| self.wrong(key, value, "a table"))?;
        let flag = |(key, value): (&'t Spanned<_>, &'t Spanned<_>)| {
            let name: &std::borrow::Cow<'_, str> = key.get_ref();
            (name.clone().into_owned(), (key.span().start, value))
        };
        Ok(table.iter().map(flag).collect())
    }

    fn scenario(
        &self,
        value: &'t Spanned<DeValue<'t>>,
        all: &Flags<'t>,
        flags: &[OsString],
    ) -> Result<Scenario, SuiteError> {
        let own = self.flags("scenario", value)?;
        let text = |key: &str| {
            let value = own.get(key);
            value.map(|(_, value)| self.text_of(key, value)).transpose()
        };
        let at = value.span().start;
        let missing = || self.error(at, "`name` of this scenario is missing".into());
        let name = text("name")?.ok_or_else(missing)?;
        let about = text("about")?.unwrap_or_default();
        let mut line = Vec::new();
        for (key, (at, value)) in all
            .iter()
            .filter(|(key, _)| !own.contains_key(*key))
            .chain(&own)
        {
            if OWN_KEYS.contains(&key.as_str()) {
                continue;
            }
            let flag = self.flag(key, *at, value)?;
            // By itself: so it is known which one is wrong.
            parse(&flag).map_err(|why| self.error(*at, format!("`{key}`: {why}")))?;
            line.extend(flag);
        }
        line.extend_from_slice(flags);
        let args =
            parse(&line).map_err(|why| self.error(at, format!("scenario {name:?}: {why}")))?;
        Ok(Scenario { name, about, args })
    }

    /// The flag of `compare` that `key` and `value` mean.
    fn flag(
        &self,
        key: &str,
        at: usize,
        value: &Spanned<DeValue<'_>>,
    ) -> Result<Vec<OsString>, SuiteError> {
        let command = command();
        let known = (command.get_arguments())
            .find(|arg| arg.get_long() == Some(key))
            .filter(|_| !OF_THE_WHOLE.contains(&key));
        let Some(known) = known else {
            let why = format!("`{key}` is no flag of `lacuna compare` for one scenario");
            return Err(self.error(at, why));
        };
        let is_switch = matches!(known.get_action(), ArgAction::SetTrue);
        let text = match value.get_ref() {
            DeValue::Boolean(true) if is_switch => return Ok(vec![format!("--{key}").into()]),
            DeValue::Boolean(false) if is_switch => return Ok(Vec::new()),
            _ if is_switch => return Err(self.wrong(key, value, "true or false")),
            DeValue::Array(items) => {
                let items = items.iter().map(|item| self.scalar(key, item));
                items.collect::<Result<Vec<_>, _>>()?.join(",")
            }
            _ => self.scalar(key, value)?,
        };
        Ok(vec![format!("--{key}={text}").into()])
    }

    fn scalar(&self, key: &str, value: &Spanned<DeValue<'_>>) -> Result<String, SuiteError> {
        match value.get_ref() {
            DeValue::String(text) => Ok(text.clone().into_owned()),
            DeValue::Integer(number) if number.radix() == 10 => Ok(number.as_str().to_owned()),
            DeValue::Boolean(truth) => Ok(truth.to_string()),
            _ => Err(self.wrong(key, value, "a text, a whole number, true or false")),
        }
    }
}

/// `lacuna compare` by itself. Of a flag that is given twice the last one counts.
fn command() -> Command {
    let command = Command::new("compare").no_binary_name(true);
    CompareArgs::augment_args(command).args_override_self(true)
}

fn parse(line: &[OsString]) -> Result<CompareArgs, String> {
    let matches = command().try_get_matches_from(line);
    matches
        .and_then(|matches| CompareArgs::from_arg_matches(&matches))
        .map_err(|error| {
            let text = error.to_string();
            let first = text.lines().next().unwrap_or_default();
            first.trim_start_matches("error: ").to_owned()
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::HintMode;

    fn suite(text: &str) -> Result<Suite, String> {
        Suite::parse("mine.toml", text, &[]).map_err(|error| error.to_string())
    }

    #[test]
    fn the_built_in_suites_can_be_run() {
        for (name, text) in BUILT_IN {
            let suite = Suite::parse(name, text, &[]).unwrap();
            assert_eq!(suite.name, name);
            assert!(suite.scenarios.iter().all(|it| !it.about.is_empty()));
        }
    }

    #[test]
    fn a_scenario_counts_more_than_all_and_the_command_line_more_than_both() {
        let text = "
            [all]
            memory = '512M'
            dirty-rate = '1M'
            [[scenario]]
            name = 'one'
            memory = '256M'
            churn = 7
            hints = ['off', 'on']
            auto-converge = true";
        let flags = ["--churn".into(), "9".into()];
        let suite = Suite::parse("mine.toml", text, &flags).unwrap();
        assert_eq!((suite.name.as_str(), suite.runs), ("mine", 3));
        let args = &suite.scenarios[0].args;
        assert_eq!(args.guest.memory.0, 256 << 20);
        assert_eq!(args.workload.dirty_rate.0, 1 << 20);
        assert_eq!(args.workload.churn, 9);
        assert_eq!(args.hints, [HintMode::Off, HintMode::On]);
        assert!(args.migration.convergence.auto_converge);
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line_and_field() {
        let scenario = |line: &str| format!("[[scenario]]\nname = 'one'\n{line}\n");
        for (text, expected) in [
            (
                "runs = 0\n".into(),
                "mine.toml, line 1: `runs` is a integer, and must be a number from 1",
            ),
            ("run = 3\n".into(), "line 1: `run` is none of name, runs"),
            ("runs = 3\n\nname = \n".into(), "line 3: "),
            ("runs = 3\n".into(), "`scenario`: there is none"),
            (
                "scenario = 3\n".into(),
                "line 1: `scenario` is a integer, and must be written as [[scenario]]",
            ),
            (
                "[[scenario]]\nchurn = 3\n".into(),
                "line 1: `name` of this scenario is missing",
            ),
            (
                scenario("memory = 'much'"),
                "line 3: `memory`: invalid value 'much' for '--memory <SIZE>'",
            ),
            (
                scenario("memory = 1.5"),
                "line 3: `memory` is a float, and must be a text, a whole number",
            ),
            (
                scenario("colour = 'red'"),
                "line 3: `colour` is no flag of `lacuna compare`",
            ),
            (
                scenario("json = true"),
                "line 3: `json` is no flag of `lacuna compare` for one scenario",
            ),
            (
                scenario("auto-converge = 1"),
                "line 3: `auto-converge` is a integer, and must be true or false",
            ),
            (
                scenario("auto-converge = true\ndeadline = 5"),
                "line 1: scenario \"one\": the argument",
            ),
            (
                scenario("") + &scenario(""),
                "line 4: `name`: another scenario is called \"one\", too",
            ),
        ] {
            let error = suite(&text).unwrap_err();
            assert!(error.contains(expected), "{error}\nnot\n{expected}");
        }
    }

    #[test]
    fn a_file_that_is_no_suite_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("suite.toml");
        let load = || Suite::load(&path, &[]).unwrap_err().to_string();
        assert!(load().contains("No such file"), "{}", load());
        std::fs::write(&path, [0xff, 0xfe]).unwrap();
        assert!(load().contains("UTF-8"), "{}", load());
        std::fs::write(&path, vec![b'#'; (MOST_BYTES + 5) as usize]).unwrap();
        assert!(load().contains("at most"), "{}", load());
    }
}
