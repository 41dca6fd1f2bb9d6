// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The command line, which follows the conventions for vhost-user back end programs.
//!
//! | module | what it is |
//! |---|---|
//! | [`device`] | the options of one device, and the [`Config`] they become |
//! | [`values`] | sizes and names |

pub mod device;
pub mod values;

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use clap::Parser;
use rustix::fs::{Gid, Mode};
use spec_sockets::{Access, access};

pub use device::{Config, DeviceArgs, FrontEnd};

use crate::sandbox::SandboxMode;

/// What `--print-capabilities` prints: the type and the optional features of the program.
pub const CAPABILITIES: &str = r#"{"type":"balloon","features":[]}"#;

const ABOUT: &str = "\
A virtio memory balloon for any VMM that speaks vhost-user: inflate and deflate, memory statistics, free page \
reporting, and free page hinting for live migration.

The VMM connects to the vhost-user socket. A migrator, and `lacuna balloon`, connect to the control socket. The \
program stays in the foreground; SIGTERM or SIGINT end it: guests are told to take their hinted pages back, \
sockets are removed. A second signal ends it at once.";

const EXAMPLES: &str = "\
Examples:
  One device, with a control socket and free page reporting:
    vhost-device-balloon --socket-path /run/vm1.sock --control-socket /run/vm1-control.sock \\
        --free-page-reporting

  Two devices in one process, one with 512 MiB in its balloon, and their metrics:
    vhost-device-balloon --metrics-socket /run/metrics.sock \\
        --device name=vm1,socket-path=/run/vm1.sock,target=512M \\
        --device name=vm2,socket-path=/run/vm2.sock,control-socket=/run/vm2-control.sock
    curl --unix-socket /run/metrics.sock http://localhost/metrics

  The description file by which management programs find the program:
    cd /usr/share/qemu/vhost-user
    vhost-device-balloon --print-description > 50-vhost-device-balloon.json

Environment:
  RUST_LOG       what is logged to standard error: error, warn (default), info or debug
  LISTEN_FDS     sockets from the service manager, named 'vhost-user', 'control', 'agent' and
                 'metrics'; with several devices 'vhost-user.NAME' and so on
  NOTIFY_SOCKET  where the service manager is told that the program is ready, how it is, and that
                 it stops

Exit status:
  0  after SIGTERM, SIGINT, or when every front end of --fd and --once has hung up
  1  if a device could not be started or served
  2  for a wrong command line";

/// A vhost-user back end for the virtio memory balloon, with free page hinting
#[derive(Clone, Debug, Parser)]
#[command(name = "vhost-device-balloon", version)]
#[command(long_about = ABOUT, after_long_help = EXAMPLES, after_help = "More, and examples: --help")]
pub struct Args {
    /// The options of the only device, or the defaults of all `devices`.
    #[command(flatten)]
    pub device: DeviceArgs,

    /// One of several devices: its options without dashes, separated by commas (a comma in a value is written twice)
    ///
    /// Every option of a device can be given. Options on the command line are the defaults of all devices; `=off` takes a
    /// feature back. Each device has its own threads, and one front end cannot disturb the others.
    #[arg(long = "device", value_name = "OPTION=VALUE,...", value_parser = device::device_line)]
    #[arg(conflicts_with_all = ["socket_path", "fd", "control_socket", "agent_socket", "name", "trace"])]
    pub devices: Vec<DeviceArgs>,

    /// Unix socket to serve metrics on, in the text format of Prometheus over HTTP
    #[arg(long, value_name = "PATH", help_heading = "Process")]
    pub metrics_socket: Option<PathBuf>,

    /// Octal permission bits of the metrics socket's file, which say who may connect
    #[arg(long, value_name = "MODE", default_value = "600", value_parser = access::mode)]
    #[arg(help_heading = "Process")]
    pub metrics_socket_mode: Mode,

    /// Group of the metrics socket's file, by name or number
    #[arg(long, value_name = "GROUP", value_parser = access::group)]
    #[arg(help_heading = "Process")]
    pub metrics_socket_group: Option<Gid>,

    /// What happens at a system call that the program does not need
    #[arg(
        long,
        value_name = "MODE",
        default_value = "enforce",
        help_heading = "Process"
    )]
    pub sandbox: SandboxMode,

    /// Print the program's capabilities as JSON and exit; other options are ignored
    #[arg(long, help_heading = "Instead of running")]
    pub print_capabilities: bool,

    /// Print the JSON description by which management programs find BINARY, or this program, and exit
    #[arg(long, value_name = "BINARY", num_args = 0..=1, help_heading = "Instead of running")]
    pub print_description: Option<Option<PathBuf>>,
}

/// The configuration of the program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// At least one.
    pub devices: Vec<Config>,
    /// The metrics socket, if there is one.
    pub metrics_socket: Option<PathBuf>,
    /// Who may connect to it.
    pub metrics_access: Access,
    /// The sandbox of the running process.
    pub sandbox: SandboxMode,
}

/// Two devices have the same name.
#[derive(Debug, thiserror::Error)]
#[error("two devices are called '{0}': give them names")]
pub struct SameName(String);

impl TryFrom<Args> for Program {
    type Error = SameName;

    fn try_from(args: Args) -> Result<Self, Self::Error> {
        let devices: Vec<Config> = if args.devices.is_empty() {
            vec![args.device.into()]
        } else {
            let common = &args.device;
            let devices = args.devices.into_iter();
            devices.map(|device| device.or(common).into()).collect()
        };
        let mut names = HashSet::new();
        if let Some(device) = devices.iter().find(|device| !names.insert(&device.name)) {
            return Err(SameName(device.name.clone()));
        }
        Ok(Self {
            devices,
            metrics_socket: args.metrics_socket,
            metrics_access: Access::new(Some(args.metrics_socket_mode), args.metrics_socket_group),
            sandbox: args.sandbox,
        })
    }
}

/// The description of the program at `binary`, as management programs read it from a file in
/// `/usr/share/qemu/vhost-user` (QEMU, docs/interop/vhost-user.json).
pub fn description(binary: &Path) -> String {
    let description = serde_json::json!({
        "description": "virtio memory balloon with free page hinting (Lacuna)",
        "type": "balloon",
        "binary": binary.to_string_lossy(),
    });
    format!("{description:#}")
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &[&str]) -> Result<Args, clap::Error> {
        Args::try_parse_from([&["vhost-device-balloon"], line].concat())
    }

    fn program(line: &[&str]) -> Result<Program, SameName> {
        Program::try_from(parse(line).unwrap())
    }

    #[test]
    fn at_most_one_way_to_the_front_end_is_taken() {
        assert!(parse(&["--fd", "3", "--socket-path", "a"]).is_err());
        assert!(parse(&["--fd", "3", "--device", "socket-path=a"]).is_err());
        let nothing_said = program(&[]).unwrap();
        let front_end = &nothing_said.devices[0].front_end;
        assert_eq!(*front_end, FrontEnd::Activated { once: false });
    }

    #[test]
    fn several_devices_have_names_of_their_own() {
        let line = ["--device", "socket-path=run/a.sock", "--device"];
        assert!(program(&[&line[..], &["socket-path=tmp/a"]].concat()).is_err());
        let two = program(&[&line[..], &["socket-path=tmp/a,name=b", "--target", "4K"]].concat());
        let devices = two.unwrap().devices;
        let seen: Vec<_> = devices
            .iter()
            .map(|device| (&*device.name, device.target))
            .collect();
        assert_eq!(seen, [("a", 1), ("b", 1)]);
    }

    #[test]
    fn a_trace_is_of_one_device() {
        assert!(parse(&["--device", "socket-path=a,trace=t"]).is_ok());
        assert!(parse(&["--device", "socket-path=a", "--trace", "t"]).is_err());
    }

    #[test]
    fn the_readme_names_every_flag() {
        let readme = include_str!("../../README.md");
        let (_, options) = readme.split_once("## Options").unwrap();
        let (options, _) = options.split_once("\n## ").unwrap();
        let named: HashSet<&str> = options
            .split([' ', ',', '\n', '`'])
            .filter_map(|word| word.strip_prefix("--"))
            .collect();
        let mut command = Args::command();
        command.build();
        let flags = command.get_arguments().filter_map(|flag| flag.get_long());
        let missing: Vec<_> = flags.filter(|flag| !named.contains(flag)).collect();
        assert!(missing.is_empty(), "{missing:?}");
    }

    #[test]
    fn the_sandbox_is_on_unless_it_is_switched_off() {
        assert_eq!(program(&[]).unwrap().sandbox, SandboxMode::Enforce);
        let off = program(&["--sandbox", "off"]).unwrap();
        assert_eq!(off.sandbox, SandboxMode::Off);
    }

    #[test]
    fn capabilities_need_no_other_option_and_are_json_of_the_balloon_type() {
        assert!(parse(&["--print-capabilities"]).unwrap().print_capabilities);
        let json: serde_json::Value = serde_json::from_str(CAPABILITIES).unwrap();
        assert_eq!(json["type"], "balloon");
        assert!(json["features"].as_array().unwrap().is_empty());
    }

    #[test]
    fn the_description_that_is_shipped_is_the_one_that_is_printed() {
        let shipped: serde_json::Value =
            serde_json::from_str(include_str!("../../50-vhost-device-balloon.json")).unwrap();
        let binary = shipped["binary"].as_str().unwrap();
        let printed: serde_json::Value =
            serde_json::from_str(&description(Path::new(binary))).unwrap();
        assert_eq!(shipped, printed);
    }
}
