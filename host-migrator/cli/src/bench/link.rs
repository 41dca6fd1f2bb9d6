// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A link of a given rate: the bench runs again in a network namespace of its own, whose loopback device is limited by the
//! kernel's token bucket filter (`tc-tbf(8)`).

use std::env;
use std::os::unix::process::CommandExt;
use std::process::Command;

use super::BenchError;

/// Set for the bench that runs in the namespace.
const READY: &str = "LACUNA_BENCH_LINK";
/// What the filter lets through at once: some packets of the loopback device, which have 64 KiB each.
const BURST: u64 = 256 << 10;
/// How long a packet may wait in the filter.
const LATENCY: &str = "50ms";
/// The namespace's shell does this before it becomes the bench. `$1` is the rate, `$2` the burst, `$3` the latency.
const MAKE_LINK: &str = r#"
ip link set lo up && tc qdisc add dev lo root tbf rate "$1"mbit burst "$2" latency "$3" && shift 3 && exec "$@"
"#;

/// Makes sure that this process runs on a link of so many million bits a second. Replaces it with one that does, unless it is
/// that one.
///
/// # Errors
/// [`BenchError::Program`] if there is no such link to be had.
pub(super) fn limited_to(mbit: u32) -> Result<(), BenchError> {
    if env::var_os(READY).is_some() {
        return Ok(());
    }
    let program = env::current_exe().map_err(BenchError::io("cannot find this program"))?;
    let failed = Command::new("unshare")
        .args(["--map-root-user", "--net", "sh", "-c", MAKE_LINK, "link"])
        .args([mbit.to_string(), BURST.to_string(), LATENCY.into()])
        .arg(program)
        .args(env::args_os().skip(1))
        .env(READY, "1")
        .exec();
    Err(BenchError::Program {
        program: "unshare",
        said: format!(
            "{failed} (it makes the network of --link-mbit; it is in Debian's util-linux)"
        ),
    })
}
