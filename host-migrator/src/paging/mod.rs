// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Demand paging: a guest runs before its memory is there, and each page is brought when it is first touched.
//!
//! A [`Userfaultfd`] tells of threads that wait for a page, in a list of [`Mapping`]s of the guest's pages. [`MissingPages`] knows
//! which pages have content that is not there yet, and lets each be brought once. A [`Pager`] knows what they contain: a
//! snapshot file is one. [`Paging`] has the threads. Userfaultfd and mappings may be those of another process:
//!
//! ```no_run
//! # use std::sync::Arc;
//! # use host_migrator::paging::*;
//! # use host_migrator::{MigrationBitmap, PageRange, Snapshot};
//! # fn f(descriptor: std::os::fd::OwnedFd, snapshot: Arc<Snapshot>) -> Result<(), Box<dyn std::error::Error>> {
//! // What another VMM said of its memory: address, page number, count.
//! let pages = PageRange::new(0, 1024).ok_or("no pages")?;
//! let mapping = Mapping::in_another_process(0x7f00_0000_0000, pages).ok_or("not an address")?;
//! // It sent its userfaultfd, with UFFD_FEATURE_EVENT_REMOVE.
//! let uffd = Userfaultfd::of_another_process(descriptor, true);
//! let missing = MissingPages::new(uffd, vec![mapping], snapshot.content()?)?;
//! let told = |event| println!("{event:?}");
//! let paging = Paging::start(missing, snapshot, PagingOptions::default(), Box::new(told))?;
//! paging.set_prefault(Prefault::Max);
//! # Ok(())
//! # }
//! ```
//!
//! # What must not touch a missing page
//! Only the mappings that are registered fault here. Another process that maps the same memory file would read zeros, and the
//! kernel would keep these zeros for everybody. So back ends in other processes must not run before nothing is missing. If one
//! did, and its page is asked for later, [`PagingError::Foreign`] names the page, and the guest ends.
//!
//! # Pages of a peer
//! A peer that sends pages by itself, and those that are asked for first, needs no thread that reads: [`Paging::start_from_peer`]
//! asks it through [`PageRequests`], and whoever receives the pages calls [`Paging::arrived`].
//!
//! A page is answered with `UFFDIO_COPY`, for which the kernel allocates a page of 4 KiB, whatever the settings of huge pages say.
//! So no neighbour comes to life with it.

mod answering;
mod arriving;
mod asked;
mod bare;
mod coverage;
mod error;
mod latency;
mod loader;
mod missing;
mod pager;
mod prefault;
mod shared;
mod threads;
mod touched;
mod userfaultfd;

pub use crate::memory::mapping::Mapping;
pub use asked::WaitingFor;
pub use bare::{BareAnswer, Fill, answer_barely};
pub use error::PagingError;
pub use latency::Waits;
pub use missing::MissingPages;
pub use pager::{PageRequests, Pager, PagerError};
pub use prefault::{NotAPace, Prefault};
pub use shared::PagingEvent;
pub use threads::{Paging, PagingOptions, PagingStatus};
pub use touched::{TouchRecorder, read_touched, touched_path};
pub use userfaultfd::{Userfaultfd, UserfaultfdError};
