// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `lacuna inspect`: what is in a snapshot file, and whether all of it is right.

use std::fs;
use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::os::unix::fs::MetadataExt;
use std::thread;

use host_migrator::snapshot::{HalfFile, TargetError, Verified};
use host_migrator::{Session, Snapshot, SnapshotError, SnapshotTarget};
use serde::Serialize;
use spec::file::VERSION;
use spec::{PAGE_SIZE, PageRange};

use crate::args::{InspectArgs, snapshot_at};
use crate::size::Size;

/// Characters of a picture's line.
const COLUMNS: u64 = 64;
/// What stands for a part of memory with none, some, ... all of its pages in the file.
const SHADES: [char; 6] = [
    '.', '\u{2581}', '\u{2582}', '\u{2584}', '\u{2586}', '\u{2588}',
];
/// Damage that is told in text.
const MOST_TOLD: usize = 20;

/// A snapshot that cannot be looked at, or is damaged.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// The name.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The file is not a complete snapshot, or cannot be read.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The file is damaged, and was described.
    #[error("{0} of it is damaged: a guest cannot be restored from this file")]
    Damaged(String),
    /// The file or standard output.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

/// What is in a snapshot file.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Description {
    version: u32,
    id: String,
    /// Absent if the file has a whole guest.
    #[serde(skip_serializing_if = "Option::is_none")]
    half: Option<HalfDescription>,
    /// Bytes of the guest's memory.
    memory_bytes: u64,
    regions: Vec<Region>,
    /// Pages that are in the file.
    pages: u64,
    page_bytes: u64,
    /// Bytes of the snapshot, holes included.
    file_bytes: u64,
    /// Bytes that the file occupies on the disk.
    file_allocated_bytes: u64,
    description_bytes: u64,
    state: Vec<Part>,
    rounds: u64,
    pages_written: u64,
    /// Absent if the pages were not read.
    #[serde(skip_serializing_if = "Option::is_none")]
    damage: Option<DamageList>,
}

/// What one side of a migration has left.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct HalfDescription {
    side: String,
    session: String,
    number: u64,
    /// Pages that the side had, those that are zero included.
    known_pages: u64,
}

#[derive(Debug, Serialize)]
struct Region {
    gpa: u64,
    length: u64,
}

#[derive(Debug, Serialize)]
struct Part {
    name: String,
    version: u32,
    bytes: usize,
}

#[derive(Debug, Serialize)]
struct DamageList {
    count: u64,
    first: Vec<DamagedPart>,
}

#[derive(Debug, Serialize)]
struct DamagedPart {
    gpa: u64,
    what: String,
}

/// `lacuna inspect`
///
/// # Errors
/// [`InspectError`] if the file is not a complete snapshot, or is damaged.
pub fn inspect(args: &InspectArgs) -> Result<(), InspectError> {
    let target = snapshot_at(&args.file)?;
    let opened = Opened::open(&target)?;
    let snapshot = opened.file();
    let threads = thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let verified = match args.no_verify {
        true => None,
        false => Some(snapshot.verify(threads, &|_| ())?),
    };
    let description = describe(&opened, verified)?;
    let mut text = match args.json {
        true => serde_json::to_string_pretty(&description).unwrap_or_default(),
        false => lines(&description).join("\n"),
    };
    if args.picture && !args.json {
        text += &picture(snapshot)?;
    }
    writeln!(io::stdout(), "{text}").map_err(io_error("write the answer"))?;
    match description.damage {
        Some(damage) if damage.count > 0 => {
            Err(InspectError::Damaged(counted(damage.count, "part")))
        }
        _ => Ok(()),
    }
}

/// A file that was opened.
enum Opened {
    /// It has a whole guest.
    Whole(Snapshot),
    /// It has what one side of a migration has left.
    Half(HalfFile),
}

impl Opened {
    fn open(target: &SnapshotTarget) -> Result<Self, SnapshotError> {
        match Snapshot::open(target) {
            Err(SnapshotError::Half { .. }) => HalfFile::open(target).map(Self::Half),
            opened => opened.map(Self::Whole),
        }
    }

    fn file(&self) -> &Snapshot {
        match self {
            Self::Whole(snapshot) => snapshot,
            Self::Half(half) => half.file(),
        }
    }

    fn half(&self) -> Option<HalfDescription> {
        match self {
            Self::Whole(_) => None,
            Self::Half(file) => Some(HalfDescription {
                side: file.half().side.to_string(),
                session: Session(file.half().session).to_string(),
                number: file.half().number,
                known_pages: file.file().commit().known,
            }),
        }
    }
}

fn describe(opened: &Opened, verified: Option<Verified>) -> Result<Description, InspectError> {
    let snapshot = opened.file();
    let (header, commit) = (snapshot.header(), snapshot.commit());
    let found = fs::metadata(snapshot.path()).map_err(io_error("look at the file"))?;
    let regions = snapshot.layout().regions().iter().map(|region| Region {
        gpa: region.first() * PAGE_SIZE,
        length: region.bytes(),
    });
    let state = snapshot.state().sections().iter().map(|part| Part {
        name: part.name.clone(),
        version: part.version,
        bytes: part.bytes.len(),
    });
    let damage = verified.map(|verified| DamageList {
        count: verified.damaged,
        first: (verified.damage.into_iter())
            .map(|damage| DamagedPart {
                gpa: damage.gpa,
                what: damage.what,
            })
            .collect(),
    });
    Ok(Description {
        version: VERSION,
        id: header.id.to_string(),
        half: opened.half(),
        memory_bytes: header.sizes.pages * PAGE_SIZE,
        regions: regions.collect(),
        pages: commit.pages,
        page_bytes: commit.pages * PAGE_SIZE,
        file_bytes: commit.length,
        // POSIX: in blocks of 512 bytes.
        file_allocated_bytes: found.blocks() * 512,
        description_bytes: header.sizes.description_bytes.into(),
        state: state.collect(),
        rounds: commit.totals.rounds,
        pages_written: commit.totals.pages_sent,
        damage,
    })
}

fn lines(snapshot: &Description) -> Vec<String> {
    let mut lines = vec![
        format!("snapshot   {}, version {}", snapshot.id, snapshot.version),
        format!(
            "memory     {} in {}",
            Size(snapshot.memory_bytes),
            counted(snapshot.regions.len() as u64, "region")
        ),
    ];
    if let Some(half) = &snapshot.half {
        lines.push(format!(
            "half       what the {} has left of session {}, number {}: {} of {} pages",
            half.side,
            half.session,
            half.number,
            half.known_pages,
            snapshot.memory_bytes / PAGE_SIZE
        ));
    }
    lines.extend(snapshot.regions.iter().map(|region| {
        let end = region.gpa + region.length;
        format!("           {:#x} to {end:#x}", region.gpa)
    }));
    lines.push(format!(
        "in use     {} in {}; {} written in {}",
        Size(snapshot.page_bytes),
        counted(snapshot.pages, "page"),
        snapshot.pages_written,
        counted(snapshot.rounds, "round")
    ));
    lines.push(format!(
        "file       {} on the disk, {} with holes",
        Size(snapshot.file_allocated_bytes),
        Size(snapshot.file_bytes)
    ));
    lines.push(format!(
        "machine    a description of {} bytes, and {}",
        snapshot.description_bytes,
        counted(snapshot.state.len() as u64, "part of state")
            .replace("part of states", "parts of state")
    ));
    lines.extend(snapshot.state.iter().map(|part| {
        format!(
            "           {} (version {}): {} bytes",
            part.name, part.version, part.bytes
        )
    }));
    match &snapshot.damage {
        None => lines.push("pages      not read".into()),
        Some(damage) if damage.count == 0 => lines.push("pages      all right".into()),
        Some(damage) => {
            lines.push(format!("damaged    {}", counted(damage.count, "part")));
            let told = damage.first.iter().take(MOST_TOLD);
            lines.extend(told.map(|part| format!("           {} at {:#x}", part.what, part.gpa)));
            let more = damage.count.saturating_sub(MOST_TOLD as u64);
            if more > 0 {
                lines.push(format!("           and {more} more"));
            }
        }
    }
    lines
}

/// A line for each region, with a character for each part of it.
fn picture(snapshot: &Snapshot) -> Result<String, InspectError> {
    let regions = snapshot.layout().regions();
    let mut counts: Vec<[u64; COLUMNS as usize]> = vec![[0; COLUMNS as usize]; regions.len()];
    let a_column = |region: &PageRange| region.count().div_ceil(COLUMNS);
    snapshot.pages(&mut |run| {
        for (region, counts) in regions.iter().zip(&mut counts) {
            let Some(part) = region.intersection(run) else {
                continue;
            };
            let (mut from, pages) = (part.first() - region.first(), a_column(region));
            let end = from + part.count();
            while from < end {
                let column = from / pages;
                let to = end.min((column + 1) * pages);
                counts[column as usize] += to - from;
                from = to;
            }
        }
    })?;
    let mut text = String::new();
    for (region, counts) in regions.iter().zip(counts) {
        let pages = a_column(region);
        let address = region.first() * PAGE_SIZE;
        let columns = (0..region.count().div_ceil(pages)).zip(counts);
        let line: String = columns
            .map(|(column, count)| shade(count, pages.min(region.count() - column * pages)))
            .collect();
        text += &format!("\n{address:>#14x}  {line}");
    }
    let legend = "  in the file: . nothing, \u{2581} a little to \u{2588} all";
    Ok(text + "\n" + &" ".repeat(14) + legend)
}

/// The character of a part of memory of which `count` of `all` pages are in the file.
fn shade(count: u64, all: u64) -> char {
    let last = SHADES.len() as u64 - 1;
    let index = match count {
        0 => 0,
        count if count >= all => last,
        count => 1 + count * (last - 1) / all,
    };
    SHADES[index as usize]
}

fn counted(count: u64, what: &str) -> String {
    match count {
        1 => format!("1 {what}"),
        _ => format!("{count} {what}s"),
    }
}

fn io_error(what: &'static str) -> impl FnOnce(io::Error) -> InspectError {
    move |source| InspectError::Io { what, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_and_all_have_a_shade_that_nothing_else_has() {
        let shades: String = (0..=100).map(|count| shade(count, 100)).collect();
        assert!(shades.starts_with(".\u{2581}") && shades.ends_with("\u{2586}\u{2588}"));
        assert_eq!(shade(1, 1), '\u{2588}');
    }
}
