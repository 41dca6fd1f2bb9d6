// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Tells a peer why it is refused.

use super::error::ReceiveError;
use super::report::LAST_WORDS;
use crate::wire::sections::{SectionReader, SectionWriter};

/// Says why, so that it arrives.
pub(super) fn refuse(input: &mut SectionReader, out: &mut SectionWriter, error: &ReceiveError) {
    out.abort(&error.to_string());
    out.finish();
    input.drain(LAST_WORDS);
}
