// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Explore the model of the rule, print its stories, or check all states of a larger setup.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;
use std::{fs, io};

use clap::{Args, Parser, Subcommand};
use spec_model::setup::Clearing;
use spec_model::{Clause, Migration, Rule, Setup, catalogue, document};
use stateright::Model;

/// The rule of free page hinting as an executable model.
///
/// Without a command it serves Stateright's explorer, which shows a migration step by step.
#[derive(Debug, Parser)]
#[command(name = "explore")]
struct Options {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve the explorer on localhost
    Serve(Serve),
    /// Print how a page is lost without each clause, and in other hypervisors
    Stories {
        /// Only this clause, such as close-before-harvest
        clause: Option<Clause>,
    },
    /// Write the stories in a document again
    Retell {
        /// The document
        file: PathBuf,
    },
    /// Check all states of a migration under the whole rule
    Check(Box<Bounds>),
}

#[derive(Debug, Args)]
struct Serve {
    /// Port on localhost
    #[arg(long, default_value_t = 3000)]
    port: u16,
    /// Switch a clause off, to see how a migration then goes wrong
    #[arg(long, value_name = "CLAUSE")]
    without: Option<Clause>,
}

#[derive(Debug, Args)]
struct Bounds {
    /// Pages of the guest
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=4))]
    pages: u8,
    /// Moves of the guest
    #[arg(long, default_value_t = 5)]
    moves: u8,
    /// Rounds before the guest is paused
    #[arg(long, default_value_t = 2)]
    rounds: u8,
    /// Background harvests
    #[arg(long, default_value_t = 0)]
    background: u8,
    /// Early harvests
    #[arg(long, default_value_t = 0)]
    early: u8,
    /// How often a migration can fail
    #[arg(long, default_value_t = 0)]
    failures: u8,
    /// How often the device can die
    #[arg(long, default_value_t = 0)]
    deaths: u8,
    /// How often the migrator can stop waiting for the device
    #[arg(long, default_value_t = 0)]
    impatience: u8,
    /// Channels to the destination
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=2))]
    channels: u8,
    /// A migration may lend the memory to a destination on the same host
    #[arg(long)]
    local: bool,
    /// Writes of a vhost-user back end
    #[arg(long, default_value_t = 0)]
    back_end_writes: u8,
    /// Writes of the VMM
    #[arg(long, default_value_t = 0)]
    own_writes: u8,
    /// The guest has an agent, too
    #[arg(long)]
    agent: bool,
    /// The guest reports free pages
    #[arg(long)]
    reporting: bool,
    /// Dirty bits are cleared page by page
    #[arg(long)]
    page_by_page: bool,
}

impl From<&Bounds> for Setup {
    fn from(bounds: &Bounds) -> Self {
        Self {
            pages: bounds.pages,
            moves: bounds.moves,
            rounds: bounds.rounds,
            background: bounds.background,
            early: bounds.early,
            failures: bounds.failures,
            deaths: bounds.deaths,
            impatience: bounds.impatience,
            channels: bounds.channels,
            local: bounds.local,
            back_end_writes: bounds.back_end_writes,
            own_writes: bounds.own_writes,
            agent: bounds.agent,
            reporting: bounds.reporting,
            clearing: if bounds.page_by_page {
                Clearing::PageByPage
            } else {
                Clearing::AtOnce
            },
            ..Self::SMALL
        }
    }
}

fn main() -> ExitCode {
    let outcome = match Options::parse().command {
        None => serve(&Serve {
            port: 3000,
            without: None,
        }),
        Some(Command::Serve(options)) => serve(&options),
        Some(Command::Stories { clause }) => {
            tell(clause);
            Ok(())
        }
        Some(Command::Retell { file }) => retell(&file),
        Some(Command::Check(bounds)) => check((&*bounds).into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("explore: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(options: &Serve) -> io::Result<()> {
    let migration = match options.without {
        Some(clause) => catalogue::without(clause).migration,
        None => Migration {
            setup: Setup::SMALL,
            rule: Rule::WHOLE,
        },
    };
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, options.port));
    // The explorer panics if it cannot listen, so try that first.
    drop(TcpListener::bind(address)?);
    println!("http://{address}/");
    migration.checker().serve(address);
    Ok(())
}

fn tell(clause: Option<Clause>) {
    let clauses = Clause::ALL
        .iter()
        .copied()
        .filter(|one| clause.is_none_or(|only| only == *one));
    for clause in clauses {
        println!("# Without {clause}\n");
        tell_case(&catalogue::without(clause));
    }
    if clause.is_none() {
        for case in catalogue::others() {
            println!("# {}\n", case.name);
            tell_case(&case);
        }
    }
}

fn tell_case(case: &catalogue::Case) {
    let found = case.migration.look_for_story(case.property);
    match found.story {
        Some(story) => println!("{story}\n"),
        None => println!("All {} states: {}.\n", found.states, case.property),
    }
}

fn retell(file: &PathBuf) -> io::Result<()> {
    let retold = document::retell(&fs::read_to_string(file)?).map_err(io::Error::other)?;
    fs::write(file, retold)
}

fn check(setup: Setup) -> io::Result<()> {
    println!("{setup:?}");
    let began = Instant::now();
    let rule = Rule::WHOLE;
    let found = Migration { setup, rule }.exhaust();
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "{} states, up to {} deep, {seconds:.0} s, {}",
        found.states,
        found.depth,
        peak_memory().unwrap_or_else(|| "memory not known".into())
    );
    if found.broken.is_empty() {
        Ok(())
    } else {
        Err(io::Error::other(format!("broken: {:?}", found.broken)))
    }
}

/// The peak memory of this process.
fn peak_memory() -> Option<String> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(format!("{} MiB", kib / 1024))
}
