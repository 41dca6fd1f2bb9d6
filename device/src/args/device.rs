// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The options of one device. They stand on the command line, or, for one of several devices, in the value of
//! `--device`. Then the options on the command line are the defaults of all devices.

use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::builder::BoolishValueParser;
use clap::{Args, Parser};
use rustix::fs::{Gid, Mode};
use spec_sockets::{Access, access};

use super::values::{AgentTransport, MAX_NAME, Numbering, bytes, device_name, pages};
use crate::balloon::options::Options;
use crate::balloon::target::AutoShrink;
use crate::hints::person::ROUND_LIMIT;
use crate::trace::TraceFile;

/// The options of one device.
#[derive(Clone, Debug, Default, Args)]
pub struct DeviceArgs {
    /// Unix socket to listen on for the front end (the VMM)
    #[arg(
        short,
        long,
        value_name = "PATH",
        conflicts_with = "fd",
        help_heading = "Sockets of a device"
    )]
    pub socket_path: Option<PathBuf>,

    /// Octal permission bits of the vhost-user socket's file, which say who may connect: exactly these, whatever the
    /// umask is [default: 600]
    #[arg(long, value_name = "MODE", value_parser = access::mode)]
    #[arg(help_heading = "Sockets of a device")]
    pub socket_mode: Option<Mode>,

    /// Group of the vhost-user socket's file, by name or number: for example that of the VMM's user, with the mode 660
    #[arg(long, value_name = "GROUP", value_parser = access::group)]
    #[arg(help_heading = "Sockets of a device")]
    pub socket_group: Option<Gid>,

    /// File descriptor of a socket that is already connected to the front end; the device ends when the front end disconnects
    #[arg(long, value_name = "FDNUM", value_parser = clap::value_parser!(i32).range(3..))]
    #[arg(help_heading = "Sockets of a device")]
    pub fd: Option<RawFd>,

    /// End the device when its first front end disconnects, instead of waiting for the next
    #[arg(long, help_heading = "Sockets of a device")]
    pub once: bool,

    /// Unix socket to listen on for the migrator and for `lacuna balloon`; without it the guest is never asked for hints
    #[arg(short, long, value_name = "PATH", help_heading = "Sockets of a device")]
    pub control_socket: Option<PathBuf>,

    /// Octal permission bits of the control socket's file, which say who may connect [default: 600]
    #[arg(long, value_name = "MODE", value_parser = access::mode)]
    #[arg(help_heading = "Sockets of a device")]
    pub control_socket_mode: Option<Mode>,

    /// Group of the control socket's file, by name or number
    #[arg(long, value_name = "GROUP", value_parser = access::group)]
    #[arg(help_heading = "Sockets of a device")]
    pub control_socket_group: Option<Gid>,

    /// Unix socket to listen on for the guest's agent: the VMM connects a port of the guest to it
    ///
    /// Over a vsock whose host end is a unix socket for each port (vhost-device-vsock, Firecracker, Cloud Hypervisor),
    /// PATH is the vsock's path, `_` and the number of the port, such as /run/vm1-vsock_1024 for `lacuna-agent
    /// --port vsock:2:1024`.
    /// Also give --agent-transport console or --agent-key.
    #[arg(long, value_name = "PATH", help_heading = "Sockets of a device")]
    pub agent_socket: Option<PathBuf>,

    /// Octal permission bits of the agent's socket, which say who may connect [default: as --socket-mode]
    #[arg(long, value_name = "MODE", value_parser = access::mode)]
    #[arg(help_heading = "Sockets of a device")]
    pub agent_socket_mode: Option<Mode>,

    /// Group of the agent's socket, by name or number [default: as --socket-group]
    #[arg(long, value_name = "GROUP", value_parser = access::group)]
    #[arg(help_heading = "Sockets of a device")]
    pub agent_socket_group: Option<Gid>,

    /// Transport of the agent, which says who in the guest can reach its socket [default: vsock]
    #[arg(long, value_name = "KIND", help_heading = "Sockets of a device")]
    pub agent_transport: Option<AgentTransport>,

    /// File with the key by which the device recognises the guest's agent, which has a copy (`lacuna-agent --key`)
    ///
    /// 32 to 4096 bytes, for example from `head -c 32 /dev/urandom`. Its owner is root or the program's user, its mode
    /// 600. A guest that migrates needs the same key on both hosts.
    #[arg(long, value_name = "FILE", help_heading = "Sockets of a device")]
    pub agent_key: Option<PathBuf>,

    /// Name of the device in the log and the metrics [default: the name of its socket's file]
    #[arg(long, value_name = "NAME", value_parser = device_name)]
    #[arg(help_heading = "Sockets of a device")]
    pub name: Option<String>,

    /// Target size of the balloon (the memory that the guest gives up), in bytes or with a unit K, M, G or T [default: 0]
    #[arg(long, value_name = "SIZE", value_parser = pages, help_heading = "Balloon")]
    pub target: Option<u32>,

    /// Shrink the balloon while the guest has less than SIZE available or stalls for lack of memory, and
    /// slowly grow it again. This asks for statistics, every second by default
    #[arg(long, value_name = "SIZE", value_parser = bytes, help_heading = "Balloon")]
    pub auto_shrink: Option<u64>,

    /// Seconds between two requests for the guest's memory statistics
    #[arg(long, value_name = "SECS", value_parser = clap::value_parser!(u32).range(1..))]
    #[arg(help_heading = "Balloon")]
    pub stats_interval: Option<u32>,

    /// Seconds after which a round of hints that a person started (`lacuna balloon hints start --detach`) ends by itself, so
    /// that the guest gets its free memory back; 0: never [default: 60]
    #[arg(long, value_name = "SECS", help_heading = "Balloon")]
    pub hint_round_limit: Option<u32>,

    /// Record what the device does in this trace, made by `lacuna trace create`
    #[arg(long, value_name = "FILE", help_heading = "Trace")]
    pub trace: Option<PathBuf>,

    /// Number of this host in the trace: the same for the device and its machine [default: 0]
    #[arg(long, value_name = "N", requires = "trace", help_heading = "Trace")]
    pub trace_host: Option<u16>,

    /// Offer free page reporting: memory that the guest reports as free is given back to the host
    #[arg(long, value_name = "on|off", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "on", value_parser = BoolishValueParser::new(), hide_possible_values = true)]
    #[arg(help_heading = "Features offered to the guest")]
    pub free_page_reporting: Option<bool>,

    /// Allow the guest to take pages out of the balloon when it runs out of memory
    #[arg(long, value_name = "on|off", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "on", value_parser = BoolishValueParser::new(), hide_possible_values = true)]
    #[arg(help_heading = "Features offered to the guest")]
    pub deflate_on_oom: Option<bool>,

    /// Require the guest to tell the device before it reuses pages of the balloon
    #[arg(long, value_name = "on|off", num_args = 0..=1, require_equals = true)]
    #[arg(default_missing_value = "on", value_parser = BoolishValueParser::new(), hide_possible_values = true)]
    #[arg(help_heading = "Features offered to the guest")]
    pub must_tell_host: Option<bool>,

    /// How queues are numbered when the guest does not use every feature [default: dense]
    #[arg(
        long,
        value_name = "RULE",
        help_heading = "Features offered to the guest"
    )]
    pub queue_numbering: Option<Numbering>,
}

impl DeviceArgs {
    /// These options, with missing ones taken from `common`. Sockets and names always belong to one device.
    pub(super) fn or(self, common: &Self) -> Self {
        Self {
            once: self.once || common.once,
            socket_mode: self.socket_mode.or(common.socket_mode),
            socket_group: self.socket_group.or(common.socket_group),
            control_socket_mode: self.control_socket_mode.or(common.control_socket_mode),
            control_socket_group: self.control_socket_group.or(common.control_socket_group),
            agent_socket_mode: self.agent_socket_mode.or(common.agent_socket_mode),
            agent_socket_group: self.agent_socket_group.or(common.agent_socket_group),
            agent_transport: self.agent_transport.or(common.agent_transport),
            agent_key: self.agent_key.or_else(|| common.agent_key.clone()),
            target: self.target.or(common.target),
            auto_shrink: self.auto_shrink.or(common.auto_shrink),
            stats_interval: self.stats_interval.or(common.stats_interval),
            hint_round_limit: self.hint_round_limit.or(common.hint_round_limit),
            free_page_reporting: self.free_page_reporting.or(common.free_page_reporting),
            deflate_on_oom: self.deflate_on_oom.or(common.deflate_on_oom),
            must_tell_host: self.must_tell_host.or(common.must_tell_host),
            queue_numbering: self.queue_numbering.or(common.queue_numbering),
            ..self
        }
    }

    /// The device's name, or else a name made from its front end's socket.
    fn name(&self) -> String {
        match (&self.name, &self.socket_path, self.fd) {
            (Some(name), ..) => name.clone(),
            (None, Some(path), _) => name_of_file(path),
            (None, None, Some(fd)) => format!("fd{fd}"),
            (None, None, None) => DEFAULT_NAME.into(),
        }
    }
}

/// The name of a device if none can be made from its sockets.
const DEFAULT_NAME: &str = "balloon";

/// Makes a name that [`device_name`] allows from any file name.
fn name_of_file(path: &Path) -> String {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let name: String = stem
        .chars()
        .map(|c| {
            if device_name(&c.to_string()).is_ok() {
                c
            } else {
                '_'
            }
        })
        .take(MAX_NAME)
        .collect();
    if name.is_empty() {
        DEFAULT_NAME.into()
    } else {
        name
    }
}

/// The value of `--device`, as a command line of its own.
#[derive(Parser)]
#[command(name = "--device", no_binary_name = true, disable_help_flag = true)]
struct Line {
    #[command(flatten)]
    device: DeviceArgs,
}

/// Reads the value of `--device`: options without their dashes, separated by commas. A comma in a value is
/// written twice, as for QEMU.
pub(super) fn device_line(text: &str) -> Result<DeviceArgs, String> {
    let mut words = vec![String::from("--")];
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        let twice = c == ',' && rest.next_if_eq(&',').is_some();
        match words.last_mut() {
            Some(word) if c != ',' || twice => word.push(c),
            _ => words.push("--".into()),
        }
    }
    if words.iter().any(|word| word == "--") {
        return Err("an option is missing between commas".into());
    }
    let line = Line::try_parse_from(words).map_err(|error| {
        let text = error.to_string();
        let line = text.lines().next().unwrap_or_default();
        line.trim_start_matches("error: ").to_owned()
    })?;
    Ok(line.device)
}

/// Where front ends come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FrontEnd {
    /// Front ends connect to a socket at this path.
    Listen {
        /// The socket's path.
        path: PathBuf,
        /// Serve only one.
        once: bool,
    },
    /// The front end is connected to this inherited file descriptor.
    Inherited(RawFd),
    /// Front ends connect to a socket that the service manager listens on.
    Activated {
        /// Serve only one.
        once: bool,
    },
}

/// The configuration of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Its name in the log and the metrics.
    pub name: String,
    /// Where front ends come from.
    pub front_end: FrontEnd,
    /// Who may connect as a front end, if there is a path.
    pub socket_access: Access,
    /// The control socket, if there is one.
    pub control_socket: Option<PathBuf>,
    /// Who may connect there.
    pub control_access: Access,
    /// The agent's socket, if there is one.
    pub agent_socket: Option<PathBuf>,
    /// Who may connect there.
    pub agent_access: Access,
    /// Who in the guest can reach it.
    pub agent_transport: AgentTransport,
    /// The file with the agent's key, if the agent must prove itself.
    pub agent_key: Option<PathBuf>,
    /// How queues get their numbers, and which features are offered.
    pub options: Options,
    /// How often the guest is asked for statistics, if at all.
    pub statistics_interval: Option<Duration>,
    /// Pages (4 KiB) that are wanted in the balloon.
    pub target: u32,
    /// Below which memory the target of a guest is lowered; `None` for never.
    pub auto_shrink: Option<AutoShrink>,
    /// After which time the device ends a round of hints for a person; `None` for never.
    pub round_limit: Option<Duration>,
    /// The device's trace, if there is one.
    pub trace: Option<TraceFile>,
}

impl From<DeviceArgs> for Config {
    fn from(args: DeviceArgs) -> Self {
        let name = args.name();
        let once = args.once;
        let numbering = args.queue_numbering.map(Into::into);
        let offered = |feature: Option<bool>| feature.unwrap_or(false);
        Self {
            name,
            front_end: match (args.socket_path, args.fd) {
                (Some(path), _) => FrontEnd::Listen { path, once },
                (None, Some(fd)) => FrontEnd::Inherited(fd),
                (None, None) => FrontEnd::Activated { once },
            },
            control_socket: args.control_socket,
            socket_access: Access::new(args.socket_mode, args.socket_group),
            control_access: Access::new(args.control_socket_mode, args.control_socket_group),
            agent_socket: args.agent_socket,
            // The VMM connects to both sockets.
            agent_access: Access::new(
                args.agent_socket_mode.or(args.socket_mode),
                args.agent_socket_group.or(args.socket_group),
            ),
            agent_transport: args.agent_transport.unwrap_or_default(),
            agent_key: args.agent_key,
            options: Options {
                numbering: numbering.unwrap_or_default(),
                reporting: offered(args.free_page_reporting),
                deflate_on_oom: offered(args.deflate_on_oom),
                must_tell_host: offered(args.must_tell_host),
            },
            statistics_interval: args
                .stats_interval
                .or(args.auto_shrink.is_some().then_some(1))
                .map(|seconds| Duration::from_secs(seconds.into())),
            target: args.target.unwrap_or(0),
            auto_shrink: args
                .auto_shrink
                .map(|keep_available| AutoShrink { keep_available }),
            round_limit: match args.hint_round_limit {
                None => Some(ROUND_LIMIT),
                Some(seconds) => (seconds != 0).then(|| Duration::from_secs(seconds.into())),
            },
            trace: args.trace.map(|path| TraceFile {
                path,
                host: args.trace_host.unwrap_or(0),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(line: &str) -> Config {
        device_line(line).unwrap().into()
    }

    #[test]
    fn a_device_without_options_has_the_defaults() {
        let config = config("fd=3");
        assert_eq!(config.front_end, FrontEnd::Inherited(3));
        assert_eq!(config.name, "fd3");
        assert_eq!(config.options, Options::default());
        assert_eq!((config.statistics_interval, config.target), (None, 0));
        assert_eq!(config.auto_shrink, None);
        for access in [
            config.socket_access,
            config.control_access,
            config.agent_access,
        ] {
            assert_eq!((access.mode.bits(), access.group), (0o600, None));
        }
        assert_eq!(config.round_limit, Some(Duration::from_secs(60)));
    }

    #[test]
    fn a_round_of_hints_has_no_limit_only_if_that_is_asked_for() {
        let limit = |seconds: u32| config(&format!("fd=3,hint-round-limit={seconds}")).round_limit;
        assert_eq!((limit(0), limit(5)), (None, Some(Duration::from_secs(5))));
    }

    #[test]
    fn a_device_line_takes_what_the_command_line_takes() {
        let config = config("socket-path=run/a,,b.sock,control-socket=c,free-page-reporting,once");
        let path = PathBuf::from("run/a,b.sock");
        assert_eq!(config.front_end, FrontEnd::Listen { path, once: true });
        assert_eq!(config.name, "a_b");
        assert!(config.options.reporting);
        for wrong in [
            "",
            "fd=2",
            "no-such=1",
            "fd=3,socket-path=a",
            "name=a/b",
            "once=,,",
        ] {
            let error = device_line(wrong).unwrap_err();
            assert!(!error.contains('\n'), "{wrong}: {error}");
        }
    }

    #[test]
    fn a_devices_own_options_override_the_defaults_of_all() {
        let common = device_line("target=1M,must-tell-host,deflate-on-oom,name=x").unwrap();
        let device = device_line("fd=3,target=2M,must-tell-host=off").unwrap();
        let config = Config::from(device.or(&common));
        assert_eq!((config.target, &*config.name), (512, "fd3"));
        assert!(config.options.deflate_on_oom);
        assert!(!config.options.must_tell_host);
    }

    #[test]
    fn the_agents_socket_has_the_access_of_the_front_ends_by_default() {
        let config = config("fd=3,socket-mode=660,socket-group=7,control-socket-mode=666");
        let vmm = Access::new(Some(Mode::from_raw_mode(0o660)), Some(Gid::from_raw(7)));
        assert_eq!((config.socket_access, config.agent_access), (vmm, vmm));
        assert_eq!(config.control_access.mode.bits(), 0o666);
        let config = self::config("fd=3,socket-mode=660,agent-socket-mode=600");
        assert_eq!(config.agent_access, Access::OWNER);
        assert!(device_line("fd=3,socket-group=no-such-group").is_err());
    }

    #[test]
    fn every_flag_of_a_feature_offers_that_feature() {
        let none = Options::default();
        type Switch = fn(&mut Options) -> &mut bool;
        let offers: [(&str, Switch); 3] = [
            ("free-page-reporting", |options| &mut options.reporting),
            ("deflate-on-oom", |options| &mut options.deflate_on_oom),
            ("must-tell-host", |options| &mut options.must_tell_host),
        ];
        for (flag, offer) in offers {
            let mut expected = none;
            *offer(&mut expected) = true;
            assert_eq!(config(&format!("fd=3,{flag}")).options, expected, "{flag}");
            assert_eq!(config(&format!("fd=3,{flag}=off")).options, none, "{flag}");
        }
    }

    #[test]
    fn an_agent_must_prove_itself_unless_its_transport_is_a_console() {
        assert_eq!(
            config("fd=3,agent-socket=a").agent_transport,
            AgentTransport::Vsock
        );
        let common = device_line("agent-key=k,agent-transport=console").unwrap();
        let device = device_line("fd=3,agent-transport=vsock").unwrap();
        let config = Config::from(device.or(&common));
        assert_eq!(config.agent_transport, AgentTransport::Vsock);
        assert_eq!(config.agent_key, Some(PathBuf::from("k")));
    }

    #[test]
    fn following_the_guest_asks_for_statistics() {
        let interval = config("fd=3,auto-shrink=64M").statistics_interval;
        assert_eq!(interval, Some(Duration::from_secs(1)));
    }
}
