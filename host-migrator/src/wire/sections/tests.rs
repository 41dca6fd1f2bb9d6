// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
use std::os::unix::net::UnixStream;

use super::*;
use crate::wire::Connection;

#[test]
fn the_reason_is_understood_after_a_section_of_which_no_byte_left() {
    let (near, far) = UnixStream::pair().unwrap();
    let near = Connection::try_from(near).unwrap();
    let stop = near.stop_flag();
    let (_reader, writer) = near.split().unwrap();
    let mut writer = SectionWriter::new(writer);
    writer.section(SectionKind::RoundEnd, []).unwrap();
    // The deadline has passed before the first byte.
    stop.set_deadline(Duration::ZERO, "the switchover");
    let void = writer.hand_over().unwrap_err();
    assert_eq!(void.written, 0);
    stop.clear_deadline();
    writer.abort("too late");
    let (reader, _writer) = Connection::try_from(far).unwrap().split().unwrap();
    let mut reader = SectionReader::new(reader);
    reader.expect(SectionKind::RoundEnd, "RoundEnd").unwrap();
    match reader.header() {
        Err(SectionError::Aborted(reason)) => assert_eq!(reason, "too late"),
        other => panic!("{other:?}"),
    }
}
