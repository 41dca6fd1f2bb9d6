// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How the values of flags are read.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{PathBufValueParser, PossibleValuesParser, TypedValueParser};
use host_migrator::PageSource;
use host_migrator::wire::LONGEST_SOCKET_PATH;
use spec::PAGE_SIZE;

use crate::size::{Size, SizeError};

/// Takes the path of a socket if it is not too long for the kernel.
pub(crate) fn socket_path() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().try_map(|path| match path.as_os_str().len() {
        0..=LONGEST_SOCKET_PATH => Ok(path),
        length => Err(format!(
            "a socket's path has at most {LONGEST_SOCKET_PATH} bytes, and this one has {length}: \
             use a shorter path, or one relative to the current folder"
        )),
    })
}

/// Takes the name of a source; the error lists all names.
pub(super) fn page_source() -> impl TypedValueParser<Value = PageSource> {
    PossibleValuesParser::new(PageSource::ALL.map(PageSource::name))
        .try_map(|name| name.parse::<PageSource>())
}

pub(super) const SOURCES_HELP: &str = "\
Sources that say which pages need not be sent, joined by commas. Of these, the migration uses those that --hints allows.

driver    free page hints of the balloon driver, in blocks of 4 MiB on x86-64
agent     free pages that the guest's agent reads from its kernel's page flags, page by page (Linux guest only)
holes     holes of the memory file: pages that were never touched
balloon   holes that the balloon device made: pages in the balloon
reported  holes that the balloon device made: pages that the guest reported as free
zero      pages that the migration reads and finds to be zero; without this source they are sent as content";

/// Reads a bandwidth limit.
pub(super) fn bandwidth(text: &str) -> Result<Size, String> {
    let size: Size = text.parse().map_err(|error: SizeError| error.to_string())?;
    if size.0 < PAGE_SIZE {
        let advice = "leave the flag out to use all that the link has";
        return Err(format!("{size} a second is less than one page: {advice}"));
    }
    Ok(size)
}

/// The default of `--peer-timeout`, in seconds.
pub(super) const PEER_TIMEOUT: &str = "30";
/// The least that leaves time for a heartbeat that comes late.
const LEAST_PEER_TIMEOUT: u64 = 2;

/// Reads for how long a peer may be silent.
pub(super) fn peer_timeout(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(seconds @ LEAST_PEER_TIMEOUT..) => Ok(Duration::from_secs(seconds)),
        _ => Err(format!(
            "'{text}' is not a whole number of seconds from {LEAST_PEER_TIMEOUT} on"
        )),
    }
}

pub(super) fn milliseconds(text: &str) -> Result<Duration, String> {
    text.parse()
        .map(Duration::from_millis)
        .map_err(|_| format!("'{text}' is not a whole number of milliseconds"))
}
