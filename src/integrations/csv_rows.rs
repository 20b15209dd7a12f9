//! The rows of a CSV file, each with the line that it starts on, in bounded memory.
//!
//! Built on `csv-core` and not on `csv`, for two reasons that an importer of strangers' files cannot do without. `csv`
//! grows its buffer with the row, so that one forgotten quote pulls the rest of the file into memory; here a row past
//! [`ROW_BYTES_MAX`] is read to its end, thrown away and named. And the position that `csv` gives for a row is taken
//! before the `\n` of the previous row's `\r\n` and before blank lines are skipped, which is the wrong line in any file
//! that was saved on Windows.
//!
//! It must never interpret a field: it knows bytes, not products.

use std::io::{self, BufRead, BufReader, ErrorKind, Read};

use csv_core::ReadRecordResult;

/// The most that one row may hold. Above any real row (a description of [`super::shopify_csv::FIELD_BYTES_MAX`] and its
/// neighbours), and what bounds the memory of an import.
pub const ROW_BYTES_MAX: usize = 4 * 1024 * 1024;
/// The most columns that a row may have; Shopify's own exports have under a hundred, and each market adds three.
pub const COLUMNS_MAX: usize = 1024;

const READ_BYTES: usize = 64 * 1024;
const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

pub struct Rows<R> {
    input: BufReader<R>,
    parser: csv_core::Reader,
    lines: Lines,
    started: bool,
}

/// One row, whose buffers are used again for the next.
#[derive(Default)]
pub struct Row {
    bytes: Vec<u8>,
    ends: Vec<usize>,
    length: usize,
    /// The line of the file on which the row starts, from 1.
    pub line: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    Row,
    /// The row was past a bound; only its `line` is known.
    TooLarge,
    End,
}

impl Row {
    pub fn fields(&self) -> usize {
        self.length
    }

    /// The bytes of a field; empty when the row has no such field.
    pub fn field(&self, index: usize) -> &[u8] {
        if index >= self.length {
            return &[];
        }
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        &self.bytes[start..self.ends[index]]
    }

    /// Whether nothing is written in it, as in the `,,,,` rows that spreadsheets leave behind.
    pub fn is_blank(&self) -> bool {
        let written = if self.length == 0 { 0 } else { self.ends[self.length - 1] };
        self.bytes[..written].iter().all(u8::is_ascii_whitespace)
    }
}

impl<R: Read> Rows<R> {
    pub fn new(input: R) -> Self {
        Rows {
            input: BufReader::with_capacity(READ_BYTES, input),
            parser: csv_core::Reader::new(),
            lines: Lines::default(),
            started: false,
        }
    }

    /// Reads the next row that is not an empty line into `row`.
    pub fn read(&mut self, row: &mut Row) -> io::Result<Next> {
        row.length = 0;
        self.skip_to_text()?;
        row.line = self.lines.current();

        let (mut written, mut ended, mut too_large) = (0, 0, false);
        loop {
            let input = match self.input.fill_buf() {
                Ok(input) => input,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let (result, read, wrote, ends) = self.parser.read_record(input, &mut row.bytes[written..], &mut row.ends[ended..]);
            self.lines.pass(&input[..read]);
            self.input.consume(read);
            written += wrote;
            ended += ends;
            match result {
                ReadRecordResult::InputEmpty => {}
                ReadRecordResult::OutputFull if row.bytes.len() < ROW_BYTES_MAX => {
                    row.bytes.resize((row.bytes.len() * 2).clamp(4096, ROW_BYTES_MAX), 0);
                }
                ReadRecordResult::OutputEndsFull if row.ends.len() < COLUMNS_MAX => {
                    row.ends.resize((row.ends.len() * 2).clamp(64, COLUMNS_MAX), 0);
                }
                // Past the bound: what was read is overwritten until the row ends, so that the next one is found.
                ReadRecordResult::OutputFull | ReadRecordResult::OutputEndsFull => {
                    (written, ended, too_large) = (0, 0, true);
                }
                ReadRecordResult::Record if too_large => return Ok(Next::TooLarge),
                ReadRecordResult::Record => {
                    row.length = ended;
                    return Ok(Next::Row);
                }
                ReadRecordResult::End => return Ok(Next::End),
            }
        }
    }

    /// Passes over line ends between rows, and over the byte order mark before the first, so that the line that is then
    /// current is the one on which the row starts.
    fn skip_to_text(&mut self) -> io::Result<()> {
        loop {
            let input = match self.input.fill_buf() {
                Ok(input) => input,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            if !self.started && !input.is_empty() {
                self.started = true;
                if input.starts_with(BYTE_ORDER_MARK) {
                    self.input.consume(BYTE_ORDER_MARK.len());
                    continue;
                }
            }
            let skipped = input.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
            if skipped == 0 {
                return Ok(());
            }
            self.lines.pass(&input[..skipped]);
            self.input.consume(skipped);
        }
    }
}

/// Counts lines as editors do: `\n`, `\r\n` and a lone `\r` each end one.
#[derive(Default)]
struct Lines {
    ended: u64,
    after_return: bool,
}

impl Lines {
    fn current(&self) -> u64 {
        self.ended + 1
    }

    fn pass(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if byte == b'\r' || (byte == b'\n' && !self.after_return) {
                self.ended += 1;
            }
            self.after_return = byte == b'\r';
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(text: &[u8]) -> Vec<(u64, Vec<String>)> {
        let (mut rows, mut row, mut seen) = (Rows::new(text), Row::default(), Vec::new());
        while rows.read(&mut row).unwrap() == Next::Row {
            let fields = (0..row.fields()).map(|field| String::from_utf8_lossy(row.field(field)).into_owned()).collect();
            seen.push((row.line, fields));
        }
        seen
    }

    fn owned(fields: &[&str]) -> Vec<String> {
        fields.iter().map(|field| (*field).to_owned()).collect()
    }

    #[test]
    fn no_file_breaks_the_reader_of_rows() {
        crate::hostile::feed("csv", vec![b"a,b\n\"c\nd\",e\n".to_vec()], |bytes| {
            let (mut rows, mut row) = (Rows::new(bytes), Row::default());
            let mut lines = 0;
            while !matches!(rows.read(&mut row).unwrap(), Next::End) {
                lines += 1;
                assert!(lines <= bytes.len() + 1, "it does not end");
            }
        });
    }

    #[test]
    fn a_row_has_the_line_on_which_an_editor_shows_its_start() {
        for end in ["\n", "\r\n", "\r"] {
            let text = ["a,b", "1,\"two", "lines\"", "", "", "3,4"].join(end);
            let second = format!("two{end}lines");
            assert_eq!(
                rows(text.as_bytes()),
                [(1, owned(&["a", "b"])), (2, owned(&["1", &second])), (6, owned(&["3", "4"]))],
                "{end:?}"
            );
        }
    }

    #[test]
    fn a_byte_order_mark_and_leading_blank_lines_are_passed_over() {
        assert_eq!(rows(b"\xEF\xBB\xBF\r\na,b\r\n"), [(2, owned(&["a", "b"]))]);
        assert_eq!(rows(b""), []);
        assert_eq!(rows(b"\r\n\r\n"), []);
    }

    #[test]
    fn a_row_past_the_bound_is_thrown_away_and_the_next_one_is_read() {
        let text = format!("a\n\"{}\n\"\nlast\n", "x".repeat(ROW_BYTES_MAX + 10));
        let (mut rows, mut row) = (Rows::new(text.as_bytes()), Row::default());
        assert_eq!(rows.read(&mut row).unwrap(), Next::Row);
        assert_eq!((rows.read(&mut row).unwrap(), row.line), (Next::TooLarge, 2));
        assert_eq!((rows.read(&mut row).unwrap(), row.line), (Next::Row, 4));
        assert_eq!(row.field(0), b"last");
        assert!(row.bytes.len() <= ROW_BYTES_MAX);

        let text = format!("{}\nlast\n", ",".repeat(COLUMNS_MAX + 10));
        let (mut rows, mut row) = (Rows::new(text.as_bytes()), Row::default());
        assert_eq!(rows.read(&mut row).unwrap(), Next::TooLarge);
        assert_eq!(rows.read(&mut row).unwrap(), Next::Row);
        assert_eq!(row.field(0), b"last");
    }

    #[test]
    fn what_is_read_does_not_depend_on_how_the_bytes_arrive() {
        struct Drip<'a>(&'a [u8]);
        impl Read for Drip<'_> {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                let Some((first, rest)) = self.0.split_first() else { return Ok(0) };
                buffer[0] = *first;
                self.0 = rest;
                Ok(1)
            }
        }
        let (mut rows, mut row) = (Rows::new(Drip(b"a,b\r\n\r\n1,\"x\r\ny\"\r\n2,3")), Row::default());
        let mut lines = Vec::new();
        while rows.read(&mut row).unwrap() == Next::Row {
            lines.push((row.line, row.fields()));
        }
        assert_eq!(lines, [(1, 2), (3, 2), (5, 2)]);
    }
}
