//! Our lines in a file that is not ours: a block at its top, between two marks. Pure.
//!
//! At the top, because there the block's bytes are the file's first ones: all others stay as they are, a missing
//! last newline included, and taking the block out gives the file back. In `hosts` and `authorized_keys` the first
//! lines win as well.

const BEGIN: &str = "# begin ocivisor: written from outside at each boot\n";
const END: &str = "# end ocivisor\n";

/// The file with this block in place of the one that it has. No lines, no block.
#[must_use]
pub fn set(file: &[u8], lines: &str) -> Vec<u8> {
    let rest = without(file);
    if lines.is_empty() {
        return rest;
    }
    let newline = if lines.ends_with('\n') { "" } else { "\n" };
    [BEGIN.as_bytes(), lines.as_bytes(), newline.as_bytes(), END.as_bytes(), &rest].concat()
}

/// The file without our block. A mark without its counterpart is a line like others.
#[must_use]
pub fn without(file: &[u8]) -> Vec<u8> {
    let mut lines = Vec::new();
    let mut rest = file;
    while !rest.is_empty() {
        let end = rest.iter().position(|c| *c == b'\n').map_or(rest.len(), |at| at + 1);
        let (line, after) = rest.split_at(end);
        lines.push(line);
        rest = after;
    }
    let Some(begin) = lines.iter().position(|line| *line == BEGIN.as_bytes()) else {
        return file.to_vec();
    };
    let Some(length) = lines[begin..].iter().position(|line| *line == END.as_bytes()) else {
        return file.to_vec();
    };
    lines.drain(begin..=begin + length);
    lines.concat()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_block_is_set_replaced_and_taken_out() {
        let one = set(b"old\nlast", "a\nb");
        let text = String::from_utf8(one.clone()).unwrap();
        assert_eq!(text, format!("{BEGIN}a\nb\n{END}old\nlast"));
        assert_eq!(set(&one, "c\n"), set(b"old\nlast", "c"));
        assert_eq!(set(&one, ""), b"old\nlast");
        assert_eq!(without(&one), b"old\nlast");
    }

    #[test]
    fn a_lonely_mark_is_text() {
        for file in [format!("{BEGIN}x\n"), format!("{END}x\n"), format!("{END}{BEGIN}x\n")] {
            assert_eq!(without(file.as_bytes()), file.as_bytes());
        }
        // Lines put above the block stay there, and the block moves to the top again.
        let moved = format!("first\n{BEGIN}a\n{END}last\n");
        assert_eq!(set(moved.as_bytes(), "b"), format!("{BEGIN}b\n{END}first\nlast\n").as_bytes());
    }

    proptest! {
        #[test]
        fn every_other_byte_is_kept(
            file in prop::collection::vec(prop_oneof![Just(b'\n'), Just(b'#'), any::<u8>()], 0..200),
            lines in "([a-z ]{0,20}\n){0,5}",
        ) {
            prop_assert_eq!(without(&set(&file, &lines)), file.clone());
            let once = set(&file, &lines);
            prop_assert_eq!(set(&once, &lines), once);
        }
    }
}
