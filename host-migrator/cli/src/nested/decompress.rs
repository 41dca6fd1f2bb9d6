// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Distributions compress kernels and modules. They are decompressed by the programs that compressed them.

use std::io::{self, Write};
use std::process::{Command, Stdio};
use std::thread;

/// The first bytes of a `gzip` file.
pub const GZIP: &[u8] = b"\x1f\x8b";

/// The first bytes of a compressed file, and the program that decompresses it.
const FORMS: [(&[u8], &str); 3] = [
    (b"\xfd7zXZ\0", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (GZIP, "gzip"),
];

/// Decompresses `data` in the format that its first bytes show. Data in an unknown format is returned unchanged.
///
/// # Errors
/// If the program is missing or finds the data damaged.
pub fn decompress(data: Vec<u8>) -> io::Result<Vec<u8>> {
    let Some((_, program)) = FORMS.iter().find(|(magic, _)| data.starts_with(magic)) else {
        return Ok(data);
    };
    let mut child = Command::new(program)
        .args(["-d", "-c", "-q"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| io::Error::new(error.kind(), format!("running {program}: {error}")))?;
    let mut input = child.stdin.take().expect("stdin is piped");
    let feeder = thread::spawn(move || {
        // The exit status of a program that stops early says why.
        let _ = input.write_all(&data);
    });
    let output = child.wait_with_output()?;
    feeder.join().expect("the feeder does not panic");
    if !output.status.success() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{program} ended with {}", output.status),
        ));
    }
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_data_passes_and_damaged_data_is_an_error() {
        assert_eq!(decompress(b"\x7fELF".to_vec()).unwrap(), b"\x7fELF");
        assert!(decompress(b"\x1f\x8b garbage".to_vec()).is_err());
    }
}
