// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The command line, after the conventions for vhost-user back end programs.

use std::os::fd::RawFd;
use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use spec::balloon::QueueNumbering;

/// What `--print-capabilities` prints: the type and the optional features of the program.
pub const CAPABILITIES: &str = r#"{"type":"balloon","features":[]}"#;

/// A vhost-user back end for the virtio memory balloon, with free page hinting.
#[derive(Clone, Debug, Parser)]
#[command(name = "vhost-device-balloon", version)]
pub struct Args {
    /// Unix socket to listen on for the front end (the VMM).
    #[arg(
        short,
        long,
        value_name = "PATH",
        conflicts_with = "fd",
        required_unless_present_any = ["fd", "print_capabilities"]
    )]
    pub socket_path: Option<PathBuf>,

    /// File descriptor of a socket that is connected to the front end already; ends with it.
    #[arg(long, value_name = "FDNUM", value_parser = clap::value_parser!(i32).range(3..))]
    pub fd: Option<RawFd>,

    /// Unix socket to listen on for the migrator. Without it no hints are asked for.
    #[arg(short, long, value_name = "PATH")]
    pub control_socket: Option<PathBuf>,

    /// How queues get their numbers when the guest does not take every feature.
    #[arg(long, value_name = "RULE", default_value = "dense")]
    pub queue_numbering: Numbering,

    /// End when the first front end hangs up instead of waiting for the next.
    #[arg(long)]
    pub once: bool,

    /// Print the program's capabilities as JSON and exit.
    #[arg(long)]
    pub print_capabilities: bool,
}

/// The values of `--queue-numbering`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Numbering {
    /// Absent queues get no number: what Linux and QEMU do.
    Dense,
    /// Every queue has the number that the virtio specification gives it.
    Fixed,
}

impl From<Numbering> for QueueNumbering {
    fn from(numbering: Numbering) -> Self {
        match numbering {
            Numbering::Dense => Self::Dense,
            Numbering::Fixed => Self::Fixed,
        }
    }
}

/// Where front ends come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FrontEnd {
    /// They connect to a socket at this path.
    Listen {
        /// The socket's path.
        path: PathBuf,
        /// Serve only one.
        once: bool,
    },
    /// It is connected to this inherited file descriptor.
    Inherited(RawFd),
}

/// What the daemon is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where front ends come from.
    pub front_end: FrontEnd,
    /// Where the migrator connects, if one may.
    pub control_socket: Option<PathBuf>,
    /// How queues get their numbers.
    pub queue_numbering: QueueNumbering,
}

/// A command line that names no front end.
#[derive(Debug, thiserror::Error)]
#[error("give --socket-path or --fd")]
pub struct NoFrontEnd;

impl TryFrom<Args> for Config {
    type Error = NoFrontEnd;

    fn try_from(args: Args) -> Result<Self, Self::Error> {
        let front_end = match (args.socket_path, args.fd) {
            (Some(path), _) => FrontEnd::Listen {
                path,
                once: args.once,
            },
            (None, Some(fd)) => FrontEnd::Inherited(fd),
            (None, None) => return Err(NoFrontEnd),
        };
        Ok(Self {
            front_end,
            control_socket: args.control_socket,
            queue_numbering: args.queue_numbering.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &[&str]) -> Result<Args, clap::Error> {
        Args::try_parse_from([&["vhost-device-balloon"], line].concat())
    }

    #[test]
    fn exactly_one_way_to_the_front_end_is_taken() {
        assert!(parse(&[]).is_err());
        assert!(parse(&["--fd", "3", "--socket-path", "a"]).is_err());
        assert!(
            parse(&["--fd", "2"]).is_err(),
            "0 to 2 are the standard streams"
        );
        let config = Config::try_from(parse(&["--fd", "3"]).unwrap()).unwrap();
        assert_eq!(config.front_end, FrontEnd::Inherited(3));
        assert_eq!(config.queue_numbering, QueueNumbering::Dense);
    }

    #[test]
    fn capabilities_need_no_other_option_and_are_json_of_the_balloon_type() {
        assert!(parse(&["--print-capabilities"]).unwrap().print_capabilities);
        let json: serde_json::Value = serde_json::from_str(CAPABILITIES).unwrap();
        assert_eq!(json["type"], "balloon");
        assert!(json["features"].as_array().unwrap().is_empty());
    }
}
