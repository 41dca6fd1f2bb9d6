// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the tests that start several parts share: the program under test, hosts with their guests, and
//! migrations between them.

use std::cell::Cell;
use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader, Write};
use std::num::NonZeroU32;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use host_migrator::report::stats::{MigrationReport, MigrationState, MigrationStatus};
use lacuna::args::GuestKind;
use lacuna::compare::{AgentPort, CompareError, Host, Part, Verdict, ask_oracle};
use lacuna::control::{self, Answer, HintMode, MigrateArguments};
use lacuna::machine::{GuestStatus, MachineState, Status};
use lacuna::trace::{TraceArgs, check_file};
use spec::PageRange;
use spec::trace::check::Verdict as RuleVerdict;
use spec::trace::{Event, PageBits};
use spec_testing::within;
use tempfile::TempDir;

/// Room for the longest migration of the lanes. The file is sparse.
const TRACE_SLOTS: u64 = 1 << 21;
/// How long anything may take: far more than it does, so that only a hang fails.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Says why a test does nothing here, and whether it must be left out.
pub fn skipped_without_kvm(test: &str) -> bool {
    if lacuna::nested::kvm_usable() {
        return false;
    }
    spec_testing::skipped(format_args!(
        "{test}: /dev/kvm is missing or cannot be opened on this machine"
    ));
    true
}

/// The command as users get it, with the jobs that the tests need besides (`examples/lacuna-under-test`).
pub fn program() -> PathBuf {
    let program = profile_folder().join("examples/lacuna-under-test");
    assert!(
        program.exists(),
        "{} is missing: run the tests with `cargo test`",
        program.display()
    );
    program
}

/// The folder in which cargo builds, to which profiles add theirs.
pub fn target_folder() -> PathBuf {
    let profile = profile_folder();
    let target = profile.parent().expect("a profile lies in a folder");
    target.to_owned()
}

fn profile_folder() -> PathBuf {
    let test = std::env::current_exe().expect("a test knows its own program");
    let profile = test.parent().and_then(Path::parent);
    profile
        .expect("tests lie in target/PROFILE/deps")
        .to_owned()
}

/// Runs the command to its end and returns what it printed.
///
/// # Panics
/// If it cannot be started.
pub fn lacuna(args: &[&str]) -> std::process::Output {
    Command::new(program())
        .args(args)
        .output()
        .expect("the command starts")
}

/// A small bare guest and what it does.
#[derive(Clone, Debug)]
pub struct BareGuest {
    /// Guest memory, as on the command line.
    pub memory: &'static str,
    /// Virtual processors.
    pub vcpus: u8,
    /// Memory that stays in use.
    pub in_use: &'static str,
    /// Memory written once and then freed.
    pub freed: &'static str,
    /// Bytes a second written to memory in use.
    pub dirty_rate: &'static str,
    /// Pages a second freed and taken again.
    pub churn: u64,
    /// Seed of its choices.
    pub seed: u64,
    /// `until-done` or `early`.
    pub hold: &'static str,
    /// `prompt` or `silent`.
    pub answer: &'static str,
}

impl Default for BareGuest {
    fn default() -> Self {
        Self {
            memory: "256M",
            vcpus: 1,
            in_use: "32M",
            freed: "160M",
            dirty_rate: "4M",
            churn: 200,
            seed: 1,
            hold: "until-done",
            answer: "prompt",
        }
    }
}

impl BareGuest {
    fn machine_args(&self) -> Vec<OsString> {
        let vcpus = self.vcpus.to_string();
        [
            "--guest",
            "bare",
            "--memory",
            self.memory,
            "--vcpus",
            &vcpus,
        ]
        .map(Into::into)
        .to_vec()
    }

    fn run_args(&self) -> Vec<OsString> {
        let (churn, seed) = (self.churn.to_string(), self.seed.to_string());
        let workload = [
            "--in-use",
            self.in_use,
            "--freed",
            self.freed,
            "--dirty-rate",
            self.dirty_rate,
            "--churn",
            &churn,
            "--seed",
            &seed,
            "--hold",
            self.hold,
            "--answer",
            self.answer,
        ];
        let mut args = vec!["run".into()];
        args.extend(self.machine_args());
        args.extend(workload.map(OsString::from));
        args
    }
}

/// A folder of sockets and the hosts in it. All that they do is recorded in one trace, and when the lab is
/// dropped the rule must allow it.
#[derive(Debug)]
pub struct Lab {
    program: PathBuf,
    folder: TempDir,
    guest: BareGuest,
    hosts: Cell<u16>,
    trace_is_checked: Cell<bool>,
}

impl Lab {
    /// A lab for `guest`.
    pub fn new(guest: BareGuest) -> Self {
        Self::of(program(), guest)
    }

    /// A lab for `guest` whose hosts run `program`.
    pub fn of(program: PathBuf, guest: BareGuest) -> Self {
        let lab = Self {
            program,
            folder: tempfile::tempdir().expect("a folder for sockets"),
            guest,
            hosts: Cell::new(0),
            trace_is_checked: Cell::new(false),
        };
        host_migrator::Trace::create(&lab.trace(), TRACE_SLOTS).expect("a trace");
        lab
    }

    /// The trace of all hosts.
    pub fn trace(&self) -> PathBuf {
        self.folder.path().join("trace")
    }

    /// What the rule says of all that happened so far, and the events around the one that breaks it. The lab
    /// asks no more itself.
    pub fn rule(&self) -> (RuleVerdict, String) {
        self.trace_is_checked.set(true);
        check_file(&self.trace()).expect("a trace")
    }

    /// Makes sure that no page arrived wrong. For those that did, it says what was done with them.
    ///
    /// # Panics
    /// If one did.
    pub fn assert_right(&self, verdict: &Verdict, what: impl std::fmt::Display) {
        if verdict.pages_wrong == 0 {
            return;
        }
        let trace = host_migrator::Trace::open(&self.trace(), 0).expect("a trace");
        let (records, _) = trace.records();
        for wrong in &verdict.examples {
            println!("page {:#x} is wrong ({:?}):", wrong.pfn, wrong.why);
            for (at, record) in records.iter().flatten().enumerate() {
                if speaks_of(record.event, wrong.pfn) {
                    println!("{at:8}  {record}");
                }
            }
        }
        panic!("{what}: {} pages are wrong", verdict.pages_wrong);
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Starts a host whose guest is at its steady work.
    pub fn running(&self, name: &'static str) -> Host {
        self.running_with(name, &[])
    }

    /// As [`Lab::running`], with more flags for its balloon device.
    pub fn running_with(&self, name: &'static str, device: &[&str]) -> Host {
        let mut host = self.start(name, self.guest.run_args(), device);
        host.wait_until("the guest to be ready", PATIENCE, |status| {
            Ok(status.guest.as_ref().is_some_and(|guest| guest.ready))
        })
        .expect("the guest comes up");
        host
    }

    /// Starts a host that waits for a guest, and returns where it listens.
    pub fn receiving(&self, name: &'static str, hold: bool) -> (Host, String) {
        self.receiving_at(name, "tcp:127.0.0.1:0", hold)
    }

    /// As [`Lab::receiving`], at an address of the test's.
    pub fn receiving_at(&self, name: &'static str, address: &str, hold: bool) -> (Host, String) {
        let mut args = self.guest.machine_args();
        if hold {
            args.push("--hold".into());
        }
        self.awaiting(name, address, args)
    }

    /// As [`Lab::receiving`], on a machine with these flags instead of the guest's own.
    pub fn receiving_on(&self, name: &'static str, machine: &[&str]) -> (Host, String) {
        let machine = machine.iter().map(OsString::from).collect();
        self.awaiting(name, "tcp:127.0.0.1:0", machine)
    }

    fn awaiting(
        &self,
        name: &'static str,
        address: &str,
        machine: Vec<OsString>,
    ) -> (Host, String) {
        let mut args: Vec<OsString> = vec!["receive".into(), address.into()];
        args.extend(machine);
        let mut host = self.start(name, args, &[]);
        let status = host
            .wait_until("the destination to listen", PATIENCE, |status| {
                Ok(status.incoming.is_some())
            })
            .expect("the destination listens");
        (host, status.incoming.unwrap_or_default())
    }

    /// Starts a balloon device in the place of the one that `host`, the lab's first, had.
    pub fn start_device_again(&self, host: &mut Host) {
        let vhost = host.control.with_file_name("source-vhost");
        let args: [&OsStr; 10] = [
            "balloon".as_ref(),
            "device".as_ref(),
            "--socket-path".as_ref(),
            vhost.as_ref(),
            "--control-socket".as_ref(),
            host.balloon_control.as_ref(),
            "--trace".as_ref(),
            &self.trace().into_os_string(),
            "--trace-host".as_ref(),
            "0".as_ref(),
        ];
        host.device = Part::start("another-device", &self.program, self.folder(), args)
            .expect("the device starts");
    }

    fn start(&self, name: &'static str, job: Vec<OsString>, device: &[&str]) -> Host {
        let device_name: &'static str = format!("{name}-device").leak();
        let trace = TraceArgs {
            trace: Some(self.trace()),
            trace_host: self.hosts.replace(self.hosts.get() + 1),
        };
        let names = (name, device_name);
        let agent = AgentPort::Absent;
        Host::start(
            &self.program,
            self.folder(),
            names,
            job,
            device,
            agent,
            &trace,
        )
        .expect("the host starts")
    }
}

/// Whether `event` is about page `pfn`, or about all pages.
fn speaks_of(event: Event, pfn: u64) -> bool {
    let in_bits = |bits: PageBits| bits.word == pfn / 64 && bits.mask & 1 << (pfn % 64) != 0;
    let in_range = |range: PageRange| range.first() <= pfn && pfn < range.end();
    match event {
        Event::Claim(bits) | Event::Skip(bits) | Event::Copy(bits) | Event::Zero(bits) => {
            in_bits(bits)
        }
        Event::Brought(brought) => in_bits(brought.pages),
        Event::Hint(hint) => in_range(hint.pages),
        Event::Memory(range)
        | Event::Armed(range)
        | Event::Hole(range)
        | Event::ZeroSent(range)
        | Event::DiscardSent(range)
        | Event::GivenUp(range)
        | Event::TakenBack(range)
        | Event::Discarding(range)
        | Event::NotDiscarded(range) => in_range(range),
        Event::PagesSent(_) => false,
        _ => true,
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() || self.trace_is_checked.get() {
            return;
        }
        let (verdict, around) = self.rule();
        assert!(
            matches!(verdict, RuleVerdict::Holds(_)),
            "{around}{verdict}"
        );
        println!("{verdict}");
    }
}

/// How a test migrates.
#[derive(Clone, Debug)]
pub struct Migration {
    /// Which knowledge of free pages.
    pub hints: HintMode,
    /// Bytes a second.
    pub max_bandwidth: Option<u64>,
    /// Milliseconds.
    pub downtime_limit: u64,
    /// Rounds after which the guest is stopped, whatever is left.
    pub max_rounds: Option<NonZeroU32>,
    /// Clauses of the rule that are switched off. Only a program built for it takes any.
    pub switched_off: Vec<&'static str>,
}

impl Default for Migration {
    fn default() -> Self {
        Self {
            hints: HintMode::On,
            max_bandwidth: None,
            downtime_limit: 300,
            max_rounds: None,
            switched_off: Vec::new(),
        }
    }
}

impl Migration {
    /// Asks `source` to migrate to `uri`.
    ///
    /// # Panics
    /// If it refuses.
    pub fn begin(&self, source: &Host, uri: &str) {
        self.try_to_begin(source, uri)
            .expect("the machine begins to migrate");
    }

    /// Asks `source` to migrate to `uri`; says why if it refuses.
    pub fn try_to_begin(&self, source: &Host, uri: &str) -> Result<(), String> {
        let arguments = MigrateArguments {
            max_bandwidth: self.max_bandwidth,
            downtime_limit: self.downtime_limit,
            max_rounds: self.max_rounds,
            hints: self.hints,
            ..MigrateArguments::to(uri.to_owned())
        };
        let command = control::Command::Migrate(arguments);
        let mut command = serde_json::to_value(command).expect("a command is JSON");
        if !self.switched_off.is_empty() {
            // These tests are built without the switches, and so the type has no such field.
            command["arguments"]["switched-off"] = self.switched_off.clone().into();
        }
        match exchange(source, &command) {
            Answer::Return(_) => Ok(()),
            Answer::Error { desc } => Err(desc),
        }
    }

    /// Migrates from `source` to `destination` at `uri` and compares the memory of the two, which the
    /// destination must hold. Returns the report and the verdict.
    pub fn complete(
        &self,
        source: &mut Host,
        destination: &mut Host,
        uri: &str,
    ) -> Result<(MigrationReport, Verdict), CompareError> {
        self.begin(source, uri);
        let ended = end_of_migration(source)?;
        if ended.status != MigrationState::Completed {
            return Err(CompareError::Migration(
                ended.error_desc.unwrap_or_default(),
            ));
        }
        destination.wait_until("the guest to arrive", PATIENCE, |status| {
            Ok(status.machine == MachineState::Held)
        })?;
        let report = source.client()?.ask(&control::Command::QueryReport)?;
        let verdict = ask_oracle(GuestKind::Bare, source, destination)?;
        Ok((report, verdict))
    }
}

/// Waits until the migration away from `source` is over.
pub fn end_of_migration(source: &mut Host) -> Result<MigrationStatus, CompareError> {
    let status = source.wait_until("the migration to end", PATIENCE, |status| {
        Ok(status.migration.status.is_over())
    })?;
    Ok(status.migration)
}

/// Waits until the machine's process has ended, and returns its exit status.
///
/// # Panics
/// If it does not end.
pub fn end_of(host: &mut Host) -> Option<i32> {
    within(PATIENCE, "the process to end", || {
        match host.machine.still_alive() {
            Ok(()) => None,
            Err(CompareError::Died { status, .. }) => Some(status.code()),
            Err(error) => panic!("{error}"),
        }
    })
}

/// `lacuna JOB --control SOCKET` for the machine of `host`; standard error if it failed.
pub fn command(host: &Host, job: &[&str]) -> Result<(), String> {
    let mut args = job.to_vec();
    args.extend(["--control", host.control.to_str().expect("a path in UTF-8")]);
    let output = lacuna(&args);
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

/// Sends one line to the machine's control socket, and returns the answer.
fn exchange(host: &Host, command: &serde_json::Value) -> Answer {
    let stream = UnixStream::connect(&host.control).expect("the machine listens");
    stream
        .set_read_timeout(Some(PATIENCE))
        .expect("a time limit");
    writeln!(&stream, "{command}").expect("the machine reads");
    let mut answer = String::new();
    BufReader::new(&stream)
        .read_line(&mut answer)
        .expect("the machine answers");
    serde_json::from_str(&answer).expect("an answer")
}

/// Sends a command that must be carried out.
pub fn tell(host: &Host, command: &control::Command) {
    host.client()
        .expect("the machine answers")
        .tell(command)
        .expect("the machine obeys");
}

/// The machine's status now.
pub fn status(host: &Host) -> Status {
    host.client()
        .and_then(|mut client| Ok(client.ask(&control::Command::Status)?))
        .expect("a status")
}

/// Waits until the guest has checked all its memory once more (a pass that is under way does not count), and
/// returns what it says then.
pub fn whole_pass(host: &mut Host) -> GuestStatus {
    let passes = |status: &Status| status.guest.as_ref().map_or(0, |guest| guest.full_passes);
    let first = passes(&status(host));
    host.wait_until("the guest to check its memory", PATIENCE, |status| {
        Ok(passes(status) >= first + 2
            || status.guest.as_ref().is_some_and(|guest| guest.wrong > 0))
    })
    .expect("the guest runs")
    .guest
    .unwrap_or_default()
}

/// Lets a held guest run and checks that all its memory is right.
pub fn release_and_check(host: &mut Host) {
    tell(host, &control::Command::Cont);
    let guest = whole_pass(host);
    assert_eq!(guest.wrong, 0, "the guest found wrong stamps: {guest:?}");
    assert_eq!(guest.failure, None);
}
