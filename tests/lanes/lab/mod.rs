// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the tests that start several parts share: the program under test, hosts with their guests, and
//! migrations between them.

mod guest;
mod handed_over;
mod host;
mod migration;
mod network;
mod program;
#[path = "../../shared/unix_wire.rs"]
pub mod unix_wire;
#[path = "../../shared/wire.rs"]
pub mod wire;

use std::cell::Cell;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ::lacuna::compare::{AgentPort, CompareError, Host, Part, Verdict};
use ::lacuna::trace::{TraceArgs, check_file};
use host_migrator::report::stats::MigrationReport;
use spec::PageRange;
use spec::trace::check::Verdict as RuleVerdict;
use spec::trace::{Event, PageBits};
use tempfile::TempDir;

pub use guest::BareGuest;
pub use handed_over::{
    comes_whole, connect_again, hand_over, listen_again, skipped_without_postcopy, until_paused,
    until_recovered,
};
pub use host::{command, end_of, release_and_check, status, tell, until_round, whole_pass};
pub use migration::{Migration, end_of_migration, ends, hinted};
pub use network::Network;
pub use program::{lacuna, program, skipped_without_kvm, target_folder};

/// Room for the longest migration of the lanes. The file is sparse.
const TRACE_SLOTS: u64 = 1 << 21;
/// A time limit for every step that only a hang exceeds.
pub const PATIENCE: Duration = Duration::from_secs(120);

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

    /// What the rule says of everything that has happened so far, with the events around the breach. The lab then does
    /// not check the trace itself.
    pub fn rule(&self) -> (RuleVerdict, String) {
        self.trace_is_checked.set(true);
        check_file(&self.trace()).expect("a trace")
    }

    /// Asserts that no page is wrong. For wrong pages, prints the events about them.
    ///
    /// # Panics
    /// If a page is wrong.
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

    /// Migrates from `source` to a new host, `name`. All memory must be right when the guest arrives, and after the
    /// guest has run on there.
    ///
    /// # Panics
    /// If it is not.
    pub fn move_whole(
        &self,
        migration: &Migration,
        source: &mut Host,
        name: &'static str,
    ) -> Moved {
        let (mut destination, uri) = self.receiving(name, true);
        let (report, verdict) = migration
            .complete(source, &mut destination, &uri)
            .expect("the migration completes");
        println!(
            "compared {} pages: {} wrong, {} given up; {} bytes on the wire, {:.1} ms",
            verdict.pages_compared,
            verdict.pages_wrong,
            verdict.pages_given_up,
            report.wire_bytes,
            report.total_ms
        );
        self.assert_right(&verdict, format_args!("{name}: {report:?}"));
        release_and_check(&mut destination);
        Moved {
            destination,
            report,
            pages_compared: verdict.pages_compared,
        }
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Starts a host, and waits until its guest's steady work has begun.
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

    /// As [`Lab::receiving`], at the given address.
    pub fn receiving_at(&self, name: &'static str, address: &str, hold: bool) -> (Host, String) {
        let mut args = self.guest.machine_args();
        if hold {
            args.push("--hold".into());
        }
        self.awaiting(name, address, args)
    }

    /// As [`Lab::receiving`], holding the guest, with more `flags`.
    pub fn receiving_with(
        &self,
        name: &'static str,
        flags: &[impl AsRef<OsStr>],
    ) -> (Host, String) {
        let mut args = self.guest.machine_args();
        args.push("--hold".into());
        args.extend(flags.iter().map(|flag| flag.as_ref().to_owned()));
        self.awaiting(name, "tcp:127.0.0.1:0", args)
    }

    /// The address of a unix socket in this lab's folder, for the host `name`.
    pub fn unix(&self, name: &str) -> String {
        format!("unix:{}", self.folder().join(name).display())
    }

    /// As [`Lab::receiving`], on a machine with these flags instead of the guest's own.
    pub fn receiving_on(&self, name: &'static str, machine: &[&str]) -> (Host, String) {
        let machine = machine.iter().map(OsString::from).collect();
        self.awaiting(name, "tcp:127.0.0.1:0", machine)
    }

    /// Starts a host that restores a guest from a file, and holds it.
    ///
    /// # Errors
    /// If it ends before it can be asked anything.
    pub fn restoring(&self, name: &'static str, file: &str) -> Result<Host, CompareError> {
        self.restoring_with(name, file, &["--hold"])
    }

    /// As [`Lab::restoring`], with these flags instead of `--hold`.
    ///
    /// # Errors
    /// If it ends before it can be asked anything.
    pub fn restoring_with(
        &self,
        name: &'static str,
        file: &str,
        flags: &[&str],
    ) -> Result<Host, CompareError> {
        let mut args: Vec<OsString> = vec!["receive".into(), file.into()];
        args.extend(self.guest.machine_args());
        args.extend(flags.iter().map(OsString::from));
        self.try_to_start(name, args, &[])
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

    /// Starts a new balloon device for `host`, the lab's host number `number` from 0, in place of the old one.
    pub fn start_device_again(&self, host: &mut Host, number: u32) {
        let hints = host
            .balloon_control
            .to_str()
            .expect("the lab's paths are UTF-8");
        let name = hints
            .strip_suffix("hints")
            .expect("the name of this socket");
        let (vhost, number) = (format!("{name}vhost"), number.to_string());
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
            number.as_ref(),
        ];
        host.device = Part::start("another-device", &self.program, self.folder(), args)
            .expect("the device starts");
    }

    fn start(&self, name: &'static str, job: Vec<OsString>, device: &[&str]) -> Host {
        self.try_to_start(name, job, device)
            .expect("the host starts")
    }

    fn try_to_start(
        &self,
        name: &'static str,
        job: Vec<OsString>,
        device: &[&str],
    ) -> Result<Host, CompareError> {
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
    }
}

/// A guest that has arrived whole.
pub struct Moved {
    /// Where it runs now.
    pub destination: Host,
    /// What its source says of the migration.
    pub report: MigrationReport,
    /// How many pages were right.
    pub pages_compared: u64,
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
