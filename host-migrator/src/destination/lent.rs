// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Takes the memory that a source on this host lends instead of sending pages. Nothing here changes it.

use spec::stream::{SectionKind, lent};

use super::error::ReceiveError;
use super::report::unexpected;
use crate::memory::layout::Layout;
use crate::memory::lent::regions;
use crate::vm::machine::DestinationMachine;
use crate::wire::SectionError;
use crate::wire::sections::SectionReader;

/// Receives the memory files of the regions of `layout`, and has `machine` map them. Returns how many bytes they hold.
pub(super) fn take(
    input: &mut SectionReader,
    layout: &Layout,
    machine: &mut dyn DestinationMachine,
) -> Result<u64, ReceiveError> {
    let header = input.header()?;
    if header.kind != SectionKind::Memory {
        return Err(unexpected(header.kind, "the source's memory").into());
    }
    let most = layout.regions().len();
    let (table, files) = input.payload_with_files(&header, most)?;
    let offsets = lent(&table, most).map_err(SectionError::from)?;
    let memory = regions(layout, offsets, files)?;
    let bytes = memory.iter().map(|region| region.len).sum();
    machine.take_memory(memory)?;
    Ok(bytes)
}
