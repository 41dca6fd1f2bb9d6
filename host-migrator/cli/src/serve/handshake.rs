// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What Firecracker says when it restores a guest with a page-fault handler: its regions, and a userfaultfd.
//!
//! It connects and sends one JSON array, in no frame, with one descriptor. It expects no answer. A read may bring a part.

use std::fs;
use std::io::ErrorKind;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use host_migrator::paging::{Mapping, Userfaultfd};
use host_migrator::{Layout, PageRange};
use rustix::fs::OFlags;
use serde::Deserialize;
use spec::PAGE_SIZE;
use spec_sockets::rights::receive_some;

use super::error::ClientError;

/// The most bytes of the array. One entry takes about 120.
const MOST_BYTES: usize = 64 << 10;
/// The most regions.
const MOST_REGIONS: usize = 512;
/// How long a client may take for all of it.
const PATIENCE: Duration = Duration::from_secs(10);

/// A region of guest memory, as Firecracker describes it. It says more, such as the page size in another, deprecated field.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
struct Region {
    /// Where the client has mapped it.
    base_host_virt_addr: u64,
    /// Bytes.
    size: u64,
    /// Where it begins in the memory file.
    offset: u64,
    /// Bytes of a page.
    #[serde(default = "small_page")]
    page_size: u64,
}

/// Clients that are older than the field have such pages.
fn small_page() -> u64 {
    PAGE_SIZE
}

/// Receives the handshake on `stream`: the userfaultfd, and where the client has mapped the pages of a guest whose memory lies as
/// `layout` says.
///
/// # Errors
/// [`ClientError`] if it is not that, comes too slowly, or does not fit the memory.
pub(super) fn receive(
    stream: &UnixStream,
    layout: &Layout,
) -> Result<(Userfaultfd, Vec<Mapping>), ClientError> {
    let (regions, descriptor) = read(stream)?;
    let mappings = mappings(&regions, layout)?;
    Ok((userfaultfd(descriptor)?, mappings))
}

fn read(stream: &UnixStream) -> Result<(Vec<Region>, OwnedFd), ClientError> {
    let began = Instant::now();
    let (mut text, mut descriptors) = (Vec::new(), Vec::new());
    loop {
        let left = PATIENCE.saturating_sub(began.elapsed());
        if left.is_zero() {
            return Err(ClientError::Slow);
        }
        stream
            .set_read_timeout(Some(left))
            .map_err(ClientError::Socket)?;
        let mut bytes = [0; 4096];
        let count = match receive_some(stream, &mut bytes, &mut descriptors) {
            Ok(0) => return Err(ClientError::Gone),
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Err(ClientError::Slow),
            Err(error) => return Err(ClientError::Socket(error)),
        };
        // More of them must not pile up while the array does not end.
        if descriptors.len() > 1 {
            return Err(ClientError::Descriptors);
        }
        text.extend_from_slice(&bytes[..count]);
        match serde_json::from_slice::<Vec<Region>>(&text) {
            Ok(regions) => {
                return descriptors
                    .pop()
                    .map(|descriptor| (regions, descriptor))
                    .ok_or(ClientError::Descriptors);
            }
            // The rest is on its way.
            Err(error) if error.is_eof() && text.len() < MOST_BYTES => {}
            Err(error) => return Err(ClientError::Json(error.to_string())),
        }
    }
}

/// Where the pages of `layout` are mapped. The regions of the memory file follow each other in it as they do in `layout`.
fn mappings(regions: &[Region], layout: &Layout) -> Result<Vec<Mapping>, ClientError> {
    if regions.is_empty() || regions.len() > MOST_REGIONS {
        return Err(ClientError::Regions(format!(
            "it names {} regions",
            regions.len()
        )));
    }
    let bytes = layout.pages() * PAGE_SIZE;
    let mut mappings = Vec::new();
    for (number, region) in regions.iter().enumerate() {
        let wrong = |why: &str| ClientError::Regions(format!("region {number} {why}"));
        if region.page_size != PAGE_SIZE {
            return Err(wrong(&format!(
                "has pages of {} bytes; only {PAGE_SIZE} can be served",
                region.page_size
            )));
        }
        let all = [region.base_host_virt_addr, region.size, region.offset];
        if region.size == 0 || all.iter().any(|at| !at.is_multiple_of(PAGE_SIZE)) {
            return Err(wrong("is empty, or does not consist of whole pages"));
        }
        let end = region.offset.checked_add(region.size);
        if end.is_none_or(|end| end > bytes) {
            return Err(wrong(&format!(
                "does not lie in the {bytes} bytes of the memory"
            )));
        }
        let mut at = 0;
        for part in layout.regions() {
            // What of it lies in this part of the memory file.
            let (from, to) = (
                region.offset.max(at),
                (region.offset + region.size).min(at + part.bytes()),
            );
            if from < to {
                let first = part.first() + (from - at) / PAGE_SIZE;
                let address = region.base_host_virt_addr.checked_add(from - region.offset);
                let pages = PageRange::new(first, (to - from) / PAGE_SIZE);
                let mapping = address.zip(pages);
                let mapping = mapping
                    .and_then(|(address, pages)| Mapping::in_another_process(address, pages));
                mappings.push(mapping.ok_or_else(|| wrong("ends behind the last address"))?);
            }
            at += part.bytes();
        }
    }
    let mut by_address: Vec<_> = mappings
        .iter()
        .map(|mapping| (mapping.address(), mapping.pages().bytes()))
        .collect();
    let mut by_page: Vec<_> = mappings
        .iter()
        .map(|mapping| (mapping.pages().first(), mapping.pages().count()))
        .collect();
    for parts in [&mut by_address, &mut by_page] {
        parts.sort_unstable();
        if parts
            .windows(2)
            .any(|pair| pair[0].0 + pair[0].1 > pair[1].0)
        {
            return Err(ClientError::Regions("two regions overlap".into()));
        }
    }
    Ok(mappings)
}

/// Makes sure that `descriptor` is a userfaultfd, and that a read of it never waits.
fn userfaultfd(descriptor: OwnedFd) -> Result<Userfaultfd, ClientError> {
    let link = format!("/proc/self/fd/{}", descriptor.as_raw_fd());
    let is_one =
        fs::read_link(link).is_ok_and(|what| what.as_os_str() == "anon_inode:[userfaultfd]");
    if !is_one {
        return Err(ClientError::NoUserfaultfd);
    }
    let io = |error: rustix::io::Errno| ClientError::Socket(error.into());
    let flags = rustix::fs::fcntl_getfl(&descriptor).map_err(io)?;
    rustix::fs::fcntl_setfl(&descriptor, flags | OFlags::NONBLOCK).map_err(io)?;
    // Firecracker asks for it, as its balloon discards memory.
    let tells_removals = true;
    Ok(Userfaultfd::of_another_process(descriptor, tells_removals))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn layout() -> Layout {
        let region = |first, count| PageRange::new(first, count).unwrap();
        Layout::new(vec![region(0, 256), region(1 << 20, 256)]).unwrap()
    }

    fn region(base: u64, size: u64, offset: u64) -> Region {
        Region {
            base_host_virt_addr: base,
            size,
            offset,
            page_size: PAGE_SIZE,
        }
    }

    #[test]
    fn regions_are_mapped_where_their_place_in_the_memory_file_says() {
        let (low, high) = (0x7000_0000_0000, 0x7100_0000_0000);
        let regions = [region(high, MIB, MIB), region(low, MIB, 0)];
        let found = mappings(&regions, &layout()).unwrap();
        let found: Vec<_> = found
            .iter()
            .map(|mapping| {
                (
                    mapping.address(),
                    mapping.pages().first(),
                    mapping.pages().count(),
                )
            })
            .collect();
        assert_eq!(found, [(high, 1 << 20, 256), (low, 0, 256)]);
        // One mapping may have both.
        let found = mappings(&[region(low, 2 * MIB, 0)], &layout()).unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!(found[1].address(), low + MIB);
    }

    #[test]
    fn regions_that_cannot_be_are_refused() {
        let base = 0x7000_0000_0000;
        let mut huge = region(base, MIB, 0);
        huge.page_size = 2 * MIB;
        let wrong = [
            vec![],
            vec![huge],
            vec![region(base + 1, MIB, 0)],
            vec![region(base, 0, 0)],
            vec![region(base, MIB, 4)],
            vec![region(base, MIB, 2 * MIB)],
            vec![region(base, u64::MAX - 4095, MIB)],
            vec![region(u64::MAX - 4095, MIB, 0)],
            vec![region(base, MIB, 0), region(base, MIB, MIB)],
            vec![region(base, MIB, 0), region(base + MIB, MIB, 0)],
            vec![region(base, MIB, 0); 600],
        ];
        for regions in wrong {
            assert!(mappings(&regions, &layout()).is_err(), "{regions:?}");
        }
    }
}
