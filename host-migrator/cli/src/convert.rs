// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `lacuna convert`: a snapshot file becomes a raw memory image, or an image a snapshot file.

use std::fs;
use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;
use std::time::Instant;

use host_migrator::snapshot::{
    PartialFile, RawImage, RawLayout, RawSource, TargetError, open_storage,
};
use host_migrator::{
    DirectIo, Layout, MachineState, RamError, Snapshot, SnapshotError, SnapshotTarget,
};
use serde::Serialize;
use spec::PAGE_SIZE;

use crate::args::{ConvertArgs, Converted, ImageLayout, snapshot_at};
use crate::size::Size;
use crate::terminal::bytes_bar;

/// A file that cannot be converted. Nothing was made.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// The name of a snapshot.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// A file cannot be read or written.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The regions of `--region` do not fit together.
    #[error("--region: {0}")]
    Regions(RamError),
    /// An image does not say where memory lies.
    #[error(
        "a raw image does not say where its memory lies: give --like SNAPSHOT, or --region ADDRESS:SIZE for each region"
    )]
    NoRegions,
    /// Flags about the guest of an image, and there is no image to read.
    #[error(
        "--like and --region say what is in a raw image: leave them out with --to raw, the snapshot knows it"
    )]
    Known,
    /// The same file twice.
    #[error("the input and the output are the same file")]
    Same,
    /// Standard output.
    #[error("cannot write the answer: {0}")]
    Output(#[source] io::Error),
}

/// What was made.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Made {
    output: String,
    memory_bytes: u64,
    regions: usize,
    /// Pages with content.
    pages: u64,
    file_bytes: u64,
    file_allocated_bytes: u64,
    ms: f64,
}

/// `lacuna convert`
///
/// # Errors
/// [`ConvertError`]. A file that had the output's name is as it was then.
pub fn convert(args: &ConvertArgs) -> Result<(), ConvertError> {
    let began = Instant::now();
    let (input, output) = (snapshot_at(&args.input)?, snapshot_at(&args.output)?);
    let file = |target: &SnapshotTarget| {
        let found = fs::metadata(&target.path).ok();
        found.map(|found| (found.dev(), found.ino()))
    };
    // A new file would replace the one that is read; and in place it would be written while it is read.
    if file(&input).is_some_and(|there| file(&output) == Some(there)) {
        return Err(ConvertError::Same);
    }
    let (layout, pages) = match args.to {
        Converted::Raw => to_raw(args, &input, &output.path)?,
        Converted::Snapshot => to_snapshot(args, &input.path, &output)?,
    };
    let found = fs::metadata(&output.path).map_err(|source| SnapshotError::Io {
        action: "look at",
        path: output.path.clone(),
        source,
    })?;
    let made = Made {
        output: args.output.clone(),
        memory_bytes: layout.pages() * PAGE_SIZE,
        regions: layout.regions().len(),
        pages,
        file_bytes: found.len(),
        // POSIX: in blocks of 512 bytes.
        file_allocated_bytes: found.blocks() * 512,
        ms: began.elapsed().as_secs_f64() * 1000.0,
    };
    let text = match args.json {
        true => serde_json::to_string_pretty(&made).unwrap_or_default(),
        false => format!(
            "made {} of {} of memory: {} in use, {} on the disk, {:.1} s",
            made.output,
            Size(made.memory_bytes),
            Size(made.pages * PAGE_SIZE),
            Size(made.file_allocated_bytes),
            made.ms / 1000.0
        ),
    };
    writeln!(io::stdout(), "{text}").map_err(ConvertError::Output)
}

fn to_raw(
    args: &ConvertArgs,
    input: &SnapshotTarget,
    output: &Path,
) -> Result<(Layout, u64), ConvertError> {
    if args.like.is_some() || !args.region.is_empty() {
        return Err(ConvertError::Known);
    }
    let snapshot = Snapshot::open(input)?;
    let layout = snapshot.layout().clone();
    let storage = PartialFile::create(output, DirectIo::Auto)?;
    let image = RawImage::create(Box::new(storage), &layout, how(args.layout))?;
    let bar = bytes_bar(snapshot.commit().pages * PAGE_SIZE, args.json);
    let pages = snapshot.load(&image, threads(), &|pages| bar.inc(pages * PAGE_SIZE))?;
    image.finish()?;
    bar.finish_and_clear();
    Ok((layout, pages))
}

fn to_snapshot(
    args: &ConvertArgs,
    input: &Path,
    output: &SnapshotTarget,
) -> Result<(Layout, u64), ConvertError> {
    let like = match &args.like {
        Some(like) => Some(Snapshot::open(&snapshot_at(like)?)?),
        None if args.region.is_empty() => return Err(ConvertError::NoRegions),
        None => None,
    };
    let layout = match &like {
        Some(like) => like.layout().clone(),
        None => {
            let regions = args.region.iter().map(|region| region.0);
            Layout::new(regions.collect()).map_err(ConvertError::Regions)?
        }
    };
    let image = RawSource::open(input, layout.clone(), how(args.layout))?;
    let no_state = MachineState::default();
    let (description, state) = match &like {
        Some(like) => (like.description(), like.state()),
        None => (&[][..], &no_state),
    };
    let storage = open_storage(output, DirectIo::Auto)?;
    let bar = bytes_bar(layout.pages() * PAGE_SIZE, args.json);
    let writers = u32::try_from(threads().get()).unwrap_or(1);
    let read = |pages| bar.inc(pages * PAGE_SIZE);
    let saved = image.save(storage, writers, description, state, &read)?;
    bar.finish_and_clear();
    Ok((layout, saved.pages))
}

fn how(layout: ImageLayout) -> RawLayout {
    match layout {
        ImageLayout::Concatenated => RawLayout::Concatenated,
        ImageLayout::Addresses => RawLayout::AtAddresses,
    }
}

fn threads() -> NonZeroUsize {
    thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)
}
