//! NumPy's `.npy`, read strictly: little-endian `f4` or `f8`, or `u1` where pixels may come; C order, versions 1 to 3 of the
//! format, and exactly as many bytes as the shape says. No pickle: other types are refused by name. After NEP 1 and `numpy.lib.format`.

/// Dimensions of an array; ours have four.
const MAX_DIMENSIONS: usize = 8;

/// An array of numbers.
#[derive(Debug, Clone, PartialEq)]
pub struct Npy {
    /// Its sides.
    pub shape: Vec<usize>,
    /// Its values, the last side fastest.
    pub values: Vec<f32>,
}

/// Pixels: values from 0 to 255.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pixels {
    /// Its sides.
    pub shape: Vec<usize>,
    /// Its values, the last side fastest.
    pub values: Vec<u8>,
}

/// An array of either kind.
#[derive(Debug, Clone, PartialEq)]
pub enum Array {
    /// Of floats.
    Floats(Npy),
    /// Of bytes.
    Pixels(Pixels),
}

/// Bytes are no array that is read here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NpyError {
    /// The first bytes are others.
    #[error("it does not begin as a .npy file does")]
    Magic,
    /// A later version of the format.
    #[error("its format version is {0}, expected 1, 2 or 3")]
    Version(u8),
    /// It ends before its header does, or its header is not the dictionary of the format.
    #[error("its header is not that of a .npy file: {0}")]
    Header(&'static str),
    /// Another type.
    #[error("its values are `{got}`, expected {expected}")]
    Type {
        /// As its header has it.
        got: String,
        /// What would be read.
        expected: &'static str,
    },
    /// Columns first.
    #[error("it is in Fortran order, expected C order (numpy.ascontiguousarray)")]
    Fortran,
    /// More values than wanted.
    #[error("it has more than {0} values")]
    TooLarge(usize),
    /// The data is not what the shape says.
    #[error("it has {got} bytes of data, its shape asks for {expected}")]
    Length {
        /// Bytes there.
        got: usize,
        /// Bytes that the shape and type ask for.
        expected: usize,
    },
    /// A value is infinite or not a number, in f32.
    #[error("value {0} is not a finite number")]
    NotFinite(usize),
}

/// Types of floats.
const FLOATS: &str = "`<f4` or `<f8`, little-endian floats";

/// Types of floats and of pixels.
const ANY: &str = "`|u1`, bytes, or `<f4` or `<f8`, little-endian floats";

// === impl Npy ===

impl Npy {
    /// Reads a file of at most `most` floats.
    pub fn read(bytes: &[u8], most: usize) -> Result<Self, NpyError> {
        let file = File::open(bytes)?;
        let size = file.float().ok_or_else(|| file.other(FLOATS))?;
        file.floats(size, most)
    }
}

// === impl Array ===

impl Array {
    /// Reads a file of at most `most` values.
    pub fn read(bytes: &[u8], most: usize) -> Result<Self, NpyError> {
        let file = File::open(bytes)?;
        if file.header.descr == "|u1" {
            let values = file.data(1, most)?.to_vec();
            return Ok(Self::Pixels(Pixels { shape: file.header.shape, values }));
        }
        let size = file.float().ok_or_else(|| file.other(ANY))?;
        file.floats(size, most).map(Self::Floats)
    }
}

/// A file whose header has been read.
struct File<'a> {
    header: Header,
    data: &'a [u8],
}

// === impl File ===

impl<'a> File<'a> {
    fn open(bytes: &'a [u8]) -> Result<Self, NpyError> {
        let (head, rest) = bytes.split_at_checked(8).ok_or(NpyError::Magic)?;
        let (magic, version) = (&head[..6], head[6]);
        if magic != b"\x93NUMPY" {
            return Err(NpyError::Magic);
        }
        let width = match version {
            1 => 2,
            2 | 3 => 4,
            other => return Err(NpyError::Version(other)),
        };
        let cut = NpyError::Header("it is cut short");
        let (length, rest) = rest.split_at_checked(width).ok_or(cut.clone())?;
        let length = length.iter().rev().fold(0_usize, |sum, &byte| sum << 8 | usize::from(byte));
        let (header, data) = rest.split_at_checked(length).ok_or(cut)?;
        let header = Header::parse(header)?;
        Ok(Self { header, data })
    }

    /// Bytes of a float, if it holds floats.
    fn float(&self) -> Option<usize> {
        match self.header.descr.as_str() {
            "<f4" => Some(4),
            "<f8" => Some(8),
            _ => None,
        }
    }

    fn other(&self, expected: &'static str) -> NpyError {
        NpyError::Type { got: self.header.descr.chars().take(20).collect(), expected }
    }

    /// The data, if it is as long as the shape says of values of this size.
    fn data(&self, size: usize, most: usize) -> Result<&'a [u8], NpyError> {
        if self.header.fortran {
            return Err(NpyError::Fortran);
        }
        let count = self.header.shape.iter().try_fold(1_usize, |count, &side| count.checked_mul(side));
        let count = count.filter(|&count| count <= most).ok_or(NpyError::TooLarge(most))?;
        // At most `most` values, whose bytes fit into an address: `data` is as long.
        let expected = count.saturating_mul(size);
        let got = self.data.len();
        if got == expected { Ok(self.data) } else { Err(NpyError::Length { got, expected }) }
    }

    fn floats(self, size: usize, most: usize) -> Result<Npy, NpyError> {
        let data = self.data(size, most)?;
        let (four, eight) = (data.as_chunks::<4>().0, data.as_chunks::<8>().0);
        let values: Vec<f32> = match size {
            4 => four.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect(),
            _ => eight.iter().map(|&bytes| f64::from_le_bytes(bytes) as f32).collect(),
        };
        match values.iter().position(|value| !value.is_finite()) {
            Some(place) => Err(NpyError::NotFinite(place)),
            None => Ok(Npy { shape: self.header.shape, values }),
        }
    }
}

/// The dictionary before the data.
struct Header {
    descr: String,
    fortran: bool,
    shape: Vec<usize>,
}

// === impl Header ===

impl Header {
    /// Reads `{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }` and blanks. The keys come in any order,
    /// each once.
    fn parse(bytes: &[u8]) -> Result<Self, NpyError> {
        let text = std::str::from_utf8(bytes).map_err(|_| NpyError::Header("it is not text"))?;
        let mut rest = Text(text);
        let (mut descr, mut fortran, mut shape) = (None, None, None);
        rest.take("{").ok_or(NpyError::Header("no `{`"))?;
        while rest.take("}").is_none() {
            let key = rest.quoted().ok_or(NpyError::Header("no key"))?;
            rest.take(":").ok_or(NpyError::Header("no `:` after a key"))?;
            let new = match key {
                "descr" => {
                    let value = rest.quoted().ok_or(NpyError::Header("`descr` is no string"))?;
                    descr.replace(value.to_owned()).is_none()
                }
                "fortran_order" => {
                    let value = rest.boolean().ok_or(NpyError::Header("`fortran_order` is no bool"))?;
                    fortran.replace(value).is_none()
                }
                "shape" => {
                    let value = rest.tuple().ok_or(NpyError::Header("`shape` is no tuple of sizes"))?;
                    shape.replace(value).is_none()
                }
                _ => return Err(NpyError::Header("an unknown key")),
            };
            if !new {
                return Err(NpyError::Header("a key comes twice"));
            }
            if rest.take(",").is_none() && !rest.0.trim_start().starts_with('}') {
                return Err(NpyError::Header("no `,` between two keys"));
            }
        }
        if !rest.0.trim().is_empty() {
            return Err(NpyError::Header("something follows it"));
        }
        match (descr, fortran, shape) {
            (Some(descr), Some(fortran), Some(shape)) => Ok(Self { descr, fortran, shape }),
            _ => Err(NpyError::Header("a key is missing")),
        }
    }
}

/// What of the header is still to be read.
struct Text<'a>(&'a str);

// === impl Text ===

impl<'a> Text<'a> {
    /// Takes this word, behind blanks.
    fn take(&mut self, word: &str) -> Option<()> {
        self.0 = self.0.trim_start().strip_prefix(word)?;
        Some(())
    }

    /// A string in either quotes; there are no escapes in a header of ours.
    fn quoted(&mut self) -> Option<&'a str> {
        let text = self.0.trim_start();
        let quote = text.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
        let (inside, rest) = text[1..].split_once(quote)?;
        self.0 = rest;
        Some(inside)
    }

    fn boolean(&mut self) -> Option<bool> {
        self.take("True").map(|()| true).or_else(|| self.take("False").map(|()| false))
    }

    /// `()`, `(3,)`, `(2, 3)`.
    fn tuple(&mut self) -> Option<Vec<usize>> {
        self.take("(")?;
        let mut sides = Vec::new();
        while self.take(")").is_none() {
            let text = self.0.trim_start();
            let digits = text.bytes().take_while(u8::is_ascii_digit).count();
            let (number, rest) = text.split_at(digits);
            if sides.len() == MAX_DIMENSIONS {
                return None;
            }
            sides.push(number.parse().ok()?);
            self.0 = rest;
            if self.take(",").is_none() && !self.0.trim_start().starts_with(')') {
                return None;
            }
        }
        Some(sides)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A file of this version, header and data.
    fn file(version: u8, header: &str, data: &[u8]) -> Vec<u8> {
        let length = header.len() as u32;
        let length =
            if version == 1 { (length as u16).to_le_bytes().to_vec() } else { length.to_le_bytes().to_vec() };
        [b"\x93NUMPY", &[version, 0][..], &length, header.as_bytes(), data].concat()
    }

    fn f4(shape: &str) -> String {
        format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}   \n")
    }

    fn bytes(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    #[test]
    fn every_version_and_both_types_are_read() {
        let values = [1.0, -2.5, 3.25, 0.0, -0.0, 1e-30];
        for version in 1..=3 {
            let read = Npy::read(&file(version, &f4("(2, 3)"), &bytes(&values)), 6).unwrap();
            assert_eq!((read.shape, read.values), (vec![2, 3], values.to_vec()));
        }
        let header = "{\"shape\": (2,), \"descr\": \"<f8\", \"fortran_order\": False}";
        let data: Vec<u8> = [1.5_f64, -2.0].iter().flat_map(|value| value.to_le_bytes()).collect();
        assert_eq!(Npy::read(&file(1, header, &data), 2).unwrap().values, [1.5, -2.0]);
        assert_eq!(Npy::read(&file(1, &f4("()"), &bytes(&[4.0])), 2).unwrap().shape, [0_usize; 0]);
        assert_eq!(Npy::read(&file(1, &f4("(0, 3)"), &[]), 2).unwrap().values, [0.0_f32; 0]);
    }

    #[test]
    fn everything_else_is_refused_by_name() {
        let header = |descr: &str, order: &str| {
            format!("{{'descr': '{descr}', 'fortran_order': {order}, 'shape': (1,), }}")
        };
        let data = bytes(&[1.0]);
        for (file, said) in [
            (b"PK\x03\x04....".to_vec(), "does not begin"),
            (Vec::new(), "does not begin"),
            (file(4, &f4("(1,)"), &data), "version is 4"),
            (file(0, &f4("(1,)"), &data), "version is 0"),
            (b"\x93NUMPY\x01\x00\xff\xff{".to_vec(), "cut short"),
            (b"\x93NUMPY\x02\x00\xff\xff\xff\xff{".to_vec(), "cut short"),
            (file(1, &header(">f4", "False"), &data), "`>f4`"),
            (file(1, &header("|O", "False"), &data), "`|O`"),
            (file(1, &header("<f4", "True"), &data), "Fortran"),
            (file(1, &header("<f4", "0"), &data), "no bool"),
            (file(1, "{'descr': '<f4', 'fortran_order': False, }", &data), "missing"),
            (file(1, "{'descr': '<f4', 'descr': '<f4'}", &data), "twice"),
            (file(1, "{'descr': '<f4' 'shape': ()}", &data), "no `,`"),
            (file(1, "{'other': 3}", &data), "unknown key"),
            (file(1, &f4("(-1,)"), &data), "no tuple"),
            (file(1, &f4("(1, 1, 1, 1, 1, 1, 1, 1, 1)"), &data), "no tuple"),
            (file(1, &f4("(99999999999999999999,)"), &data), "no tuple"),
            (file(1, &f4("(4294967296, 4294967296)"), &data), "more than 8"),
            (file(1, &f4("(9,)"), &bytes(&[0.0; 9])), "more than 8"),
            (file(1, &f4("(2,)"), &data), "4 bytes of data, its shape asks for 8"),
            (file(1, &f4("(1,)"), &bytes(&[1.0, 2.0])), "8 bytes of data"),
            (file(1, &f4("(2,)"), &bytes(&[1.0, f32::NAN])), "value 1 is not"),
            (file(1, &f4("(1,)"), &bytes(&[f32::INFINITY])), "value 0 is not"),
        ] {
            let error = Npy::read(&file, 8).expect_err(said).to_string();
            assert!(error.contains(said), "{error}, expected {said}");
        }
        // Pixels only where they may come.
        let pixels = file(1, "{'descr': '|u1', 'fortran_order': False, 'shape': (3,), }", &[0, 7, 255]);
        assert!(Npy::read(&pixels, 8).unwrap_err().to_string().contains("`|u1`"));
        let read = Array::Pixels(Pixels { shape: vec![3], values: vec![0, 7, 255] });
        assert_eq!(Array::read(&pixels, 8), Ok(read));
        assert_eq!(Array::read(&pixels, 2), Err(NpyError::TooLarge(2)));
        let floats = Npy { shape: vec![1], values: vec![1.0] };
        assert_eq!(Array::read(&file(1, &f4("(1,)"), &data), 8), Ok(Array::Floats(floats)));
        assert!(
            Array::read(&file(1, &header("<i4", "False"), &data), 8)
                .unwrap_err()
                .to_string()
                .contains("`|u1`")
        );
        // Finite in f64, not in f32.
        let wide = file(1, &header("<f8", "False"), &1e300_f64.to_le_bytes());
        assert_eq!(Npy::read(&wide, 8), Err(NpyError::NotFinite(0)));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Npy::read(&bytes, 1 << 20);
        }

        #[test]
        fn no_header_makes_it_panic(version in 0_u8..5, header in "[{}()',: <f48a-z_FTrue0-9é]{0,80}", data in proptest::collection::vec(any::<u8>(), 0..40)) {
            let _ = Npy::read(&file(version, &header, &data), 1 << 20);
        }

        #[test]
        fn a_damaged_file_is_refused_or_another_array(at in 0_usize..200, byte in any::<u8>()) {
            let mut damaged = file(1, &f4("(2, 3)"), &bytes(&[0.5; 6]));
            let place = at % damaged.len();
            damaged[place] = byte;
            if let Ok(read) = Npy::read(&damaged, 6) {
                prop_assert_eq!(read.shape.iter().product::<usize>(), read.values.len());
            }
        }
    }
}
