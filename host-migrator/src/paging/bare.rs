// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The least that an answer to a page fault takes: one thread, one call of the kernel. For benches, which measure other answers beside
//! it.

use std::io;
use std::thread::{self, JoinHandle};

use rustix::event::{PollFd, PollFlags, poll};
use spec::{PAGE_SIZE, PageRange};

use super::error::PagingError;
use super::userfaultfd::{Message, Userfaultfd};
use crate::memory::mapping::Mapping;

/// Where the content of a page comes from: its page frame number, and room for the page.
pub type Fill = Box<dyn FnMut(u64, &mut [u8]) -> io::Result<()> + Send>;

/// What the missing pages contain.
pub enum BareAnswer {
    /// What this says.
    Content(Fill),
    /// Zeros.
    Zero,
}

impl std::fmt::Debug for BareAnswer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Content(_) => "Content",
            Self::Zero => "Zero",
        })
    }
}

/// Answers the next `faults` faults in `mapping`, one page each, in a thread of its own.
///
/// # Errors
/// [`PagingError`] if faults cannot be handled.
pub fn answer_barely(
    mapping: Mapping,
    faults: u64,
    answer: BareAnswer,
) -> Result<JoinHandle<io::Result<()>>, PagingError> {
    let uffd = Userfaultfd::open(false)?;
    uffd.register(&mapping)?;
    let thread = thread::Builder::new().name("bare-answer".into());
    let thread = thread.spawn(move || serve(&uffd, mapping, faults, answer));
    thread.map_err(PagingError::Thread)
}

fn serve(
    uffd: &Userfaultfd,
    mapping: Mapping,
    faults: u64,
    mut answer: BareAnswer,
) -> io::Result<()> {
    let mut content = [0; PAGE_SIZE as usize];
    let mut messages = Vec::new();
    let mut left = faults;
    while left > 0 {
        poll(&mut [PollFd::new(uffd, PollFlags::IN)], None)?;
        uffd.read::<1>(&mut messages)?;
        let Some(Message::Fault(address)) = messages.pop() else {
            continue;
        };
        let page = mapping
            .page_at(address)
            .and_then(|page| PageRange::new(page, 1));
        let Some(page) = page.and_then(|page| mapping.part(page)) else {
            continue;
        };
        let (_, refusal) = match &mut answer {
            BareAnswer::Content(fill) => {
                fill(page.pages().first(), &mut content)?;
                uffd.copy(page.address(), &content)
            }
            BareAnswer::Zero => uffd.zero(page.bytes()),
        };
        if let Some(refusal) = refusal {
            return Err(refusal.into());
        }
        left -= 1;
    }
    Ok(())
}
