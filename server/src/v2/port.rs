//! What goes into a model and what comes out of it, each with one row for each image, and the check of a request's
//! tensors against it.

use std::borrow::Cow;
use std::collections::BTreeMap;

use windowpane_diffusion::error::number;

use super::{Datatype, Tensor, Values};
use crate::error::{ApiError, Cause};
use crate::spec::MOST_NOISE;

/// Bytes of an element in JSON, about: eight digits, a sign, a point and a comma.
const JSON_ELEMENT: usize = 12;

/// An input or an output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// Its name.
    pub name: Cow<'static, str>,
    /// What its first dimension is.
    pub lead: Lead,
    /// Its datatype.
    pub datatype: Datatype,
    /// Other datatypes in which it is taken.
    pub also: &'static [Datatype],
    /// The dimensions of a row.
    pub row: Vec<usize>,
    /// Whether it may be left out.
    pub optional: bool,
}

/// The first dimension of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lead {
    /// The number of rows, the same for all of a request.
    Rows,
    /// 1: one for all rows.
    One,
}

/// The inputs of a request that fit the ports of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Inputs {
    rows: usize,
    values: BTreeMap<String, (Lead, Values)>,
}

/// Refuses a row with values so large that the network's own would not be finite.
pub fn moderate(name: &str, row: usize, values: &[f32]) -> Result<(), ApiError> {
    match values.iter().find(|value| value.abs() > MOST_NOISE) {
        None => Ok(()),
        Some(value) => Err(ApiError::invalid(
            &format!("inputs.{name}"),
            format!("{} in row {row}", number(f64::from(*value))),
            format!("-{MOST_NOISE} to {MOST_NOISE}"),
        )),
    }
}

// === impl Port ===

impl Port {
    /// A port that must be given.
    pub fn new(name: impl Into<Cow<'static, str>>, datatype: Datatype, row: &[usize]) -> Self {
        let (name, row) = (name.into(), row.to_vec());
        Self { name, lead: Lead::Rows, datatype, also: &[], row, optional: false }
    }

    /// The same with another first dimension.
    #[must_use]
    pub fn led_by(mut self, lead: Lead) -> Self {
        self.lead = lead;
        self
    }

    /// The same, taken in other datatypes too.
    #[must_use]
    pub fn also(mut self, also: &'static [Datatype]) -> Self {
        self.also = also;
        self
    }

    /// The same, which may be left out.
    #[must_use]
    pub fn optional(mut self) -> Self {
        self.optional = true;
        self
    }

    /// The shape with so many rows.
    pub fn shape(&self, rows: usize) -> Vec<usize> {
        let first = if self.lead == Lead::One { 1 } else { rows };
        std::iter::once(first).chain(self.row.iter().copied()).collect()
    }

    /// Bytes of so many rows as an answer has them, about: binary, or in JSON.
    pub fn bytes(&self, rows: usize, binary: bool) -> usize {
        let element = self.datatype.size().filter(|_| binary).unwrap_or(JSON_ELEMENT);
        self.shape(rows).into_iter().fold(element, usize::saturating_mul)
    }

    /// The shape in words.
    fn shape_in_words(&self) -> String {
        let row: String = self.row.iter().map(|dim| format!(", {dim}")).collect();
        let first = if self.lead == Lead::One { "1" } else { "n" };
        format!("[{first}{row}]")
    }

    /// The datatypes in words.
    fn datatypes_in_words(&self) -> String {
        let names = std::iter::once(&self.datatype).chain(self.also).map(|datatype| datatype.as_str());
        names.collect::<Vec<_>>().join(" or ")
    }

    fn accepts(&self, datatype: Datatype) -> bool {
        datatype == self.datatype || self.also.contains(&datatype)
    }

    /// Rows of a tensor that fits.
    fn check(&self, tensor: &Tensor) -> Result<usize, ApiError> {
        let datatype = tensor.values.datatype();
        if !self.accepts(datatype) {
            let place = format!("inputs.{}.datatype", self.name);
            return Err(ApiError::invalid(&place, datatype.as_str(), self.datatypes_in_words()));
        }
        match tensor.shape.split_first() {
            Some((&rows, row)) if row == self.row && (self.lead == Lead::Rows || rows == 1) => Ok(rows),
            _ => {
                let place = format!("inputs.{}.shape", self.name);
                Err(ApiError::invalid(&place, format!("{:?}", tensor.shape), self.shape_in_words()))
            }
        }
    }
}

// === impl Inputs ===

impl Inputs {
    /// Every tensor has a port, every port its tensor unless it is optional, and all have the same number of rows, at
    /// most `most`.
    pub fn check(ports: &[Port], tensors: Vec<Tensor>, most: usize) -> Result<Self, ApiError> {
        let mut first: Option<(&str, usize)> = None;
        let mut values = BTreeMap::new();
        for tensor in tensors {
            let port = ports.iter().find(|port| port.name == tensor.name).ok_or_else(|| {
                let names = ports.iter().map(|port| &*port.name).collect::<Vec<_>>().join(", ");
                let got: String = tensor.name.chars().take(64).collect();
                let message = format!("no input `{got}`; the inputs are {names}");
                ApiError::new(Cause::UnknownField, message).param(format!("inputs.{got}"))
            })?;
            let rows = port.check(&tensor)?;
            if port.lead == Lead::One {
                values.insert(tensor.name, (port.lead, tensor.values));
                continue;
            }
            let (named, expected) = *first.get_or_insert((&*port.name, rows));
            if rows != expected {
                let place = format!("inputs.{}.shape", port.name);
                let expected = format!("as many rows as `{named}`, {expected}");
                return Err(ApiError::invalid(&place, format!("{:?}", tensor.shape), expected));
            }
            values.insert(tensor.name, (port.lead, tensor.values));
        }
        if let Some(missing) = ports.iter().find(|port| !port.optional && !values.contains_key(&*port.name)) {
            let expected = format!("{} of shape {}", missing.datatypes_in_words(), missing.shape_in_words());
            return Err(ApiError::invalid(&format!("inputs.{}", missing.name), "missing", expected));
        }
        let (name, rows) = first.unwrap_or(("inputs", 0));
        if !(1..=most).contains(&rows) {
            let place = format!("inputs.{name}.shape");
            return Err(ApiError::invalid(&place, format!("{rows} rows"), format!("1 to {most} rows")));
        }
        Ok(Self { rows, values })
    }

    /// Rows, at least one.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The rows of a number tensor of single precision, where it was given.
    pub fn rows_of(&mut self, name: &'static str) -> Option<Vec<Vec<f32>>> {
        match self.values.remove(name) {
            Some((lead, Values::F32(values))) => {
                let rows = if lead == Lead::One { 1 } else { self.rows };
                Some(values.chunks_exact(values.len() / rows).map(<[f32]>::to_vec).collect())
            }
            _ => None,
        }
    }

    /// A real number for each row, where they were given.
    pub fn reals(&mut self, name: &'static str) -> Option<Vec<f64>> {
        match self.values.remove(name)?.1 {
            Values::F32(values) => Some(values.into_iter().map(f64::from).collect()),
            Values::F64(values) => Some(values),
            _ => None,
        }
    }

    /// A string for each row, where they were given.
    pub fn strings(&mut self, name: &'static str) -> Option<Result<Vec<String>, ApiError>> {
        if self.values.get(name)?.1.datatype() != Datatype::Bytes {
            return None;
        }
        let Some((_, Values::Bytes(strings))) = self.values.remove(name) else { return None };
        let text = |(row, string)| {
            String::from_utf8(string).map_err(|_| {
                ApiError::invalid(&format!("inputs.{name}"), format!("not UTF-8 at row {row}"), "text")
            })
        };
        Some(strings.into_iter().enumerate().map(text).collect())
    }

    /// A whole number, 0 or more, for each row, where they were given.
    pub fn naturals(&mut self, name: &'static str) -> Option<Result<Vec<u64>, ApiError>> {
        let negative = |(row, value): (usize, i64)| {
            u64::try_from(value).map_err(|_| {
                ApiError::invalid(&format!("inputs.{name}"), format!("{value} at row {row}"), "0 or more")
            })
        };
        Some(match self.values.remove(name)?.1 {
            Values::U8(values) => Ok(values.into_iter().map(u64::from).collect()),
            Values::U32(values) => Ok(values.into_iter().map(u64::from).collect()),
            Values::U64(values) => Ok(values),
            Values::I32(values) => values.into_iter().map(i64::from).enumerate().map(negative).collect(),
            Values::I64(values) => values.into_iter().enumerate().map(negative).collect(),
            Values::F32(_) | Values::F64(_) | Values::Bytes(_) => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports() -> [Port; 2] {
        [
            Port::new("x", Datatype::Fp32, &[1, 2]),
            Port::new("k", Datatype::Int64, &[]).also(&[Datatype::Uint64, Datatype::Bytes]).optional(),
        ]
    }

    fn tensor(name: &str, shape: &[usize], values: Values) -> Tensor {
        Tensor { name: name.to_owned(), shape: shape.to_vec(), values }
    }

    fn x(rows: usize) -> Tensor {
        tensor("x", &[rows, 1, 2], Values::F32(vec![0.5; 2 * rows]))
    }

    #[test]
    fn rows_are_counted_and_handed_out() {
        let k = tensor("k", &[2], Values::U64(vec![3, u64::MAX]));
        let mut inputs = Inputs::check(&ports(), vec![k, x(2)], 4).unwrap();
        assert_eq!(inputs.rows(), 2);
        assert_eq!(inputs.strings("k"), None, "those are numbers");
        assert_eq!(inputs.naturals("k"), Some(Ok(vec![3, u64::MAX])));
        assert_eq!(inputs.rows_of("x"), Some(vec![vec![0.5, 0.5]; 2]));
        assert_eq!(inputs.reals("x"), None, "it is gone");
        let negative = tensor("k", &[2], Values::I64(vec![3, -1]));
        let mut inputs = Inputs::check(&ports(), vec![x(2), negative], 4).unwrap();
        let error = inputs.naturals("k").unwrap().unwrap_err();
        assert_eq!(error.message, "`inputs.k` is -1 at row 1, expected 0 or more");
    }

    #[test]
    fn one_for_all_rows_is_counted_apart() {
        let ports =
            [Port::new("x", Datatype::Fp32, &[2]).led_by(Lead::One), Port::new("v", Datatype::Fp32, &[2])];
        let x = |rows: usize| tensor("x", &[rows, 2], Values::F32(vec![0.5; 2 * rows]));
        let v = || tensor("v", &[3, 2], Values::F32(vec![1.0; 6]));
        let mut inputs = Inputs::check(&ports, vec![x(1), v()], 4).unwrap();
        assert_eq!(inputs.rows(), 3);
        assert_eq!(inputs.rows_of("x"), Some(vec![vec![0.5; 2]]));
        assert_eq!(inputs.rows_of("v"), Some(vec![vec![1.0; 2]; 3]));
        let error = Inputs::check(&ports, vec![x(3), v()], 4).unwrap_err();
        assert_eq!(error.message, "`inputs.x.shape` is [3, 2], expected [1, 2]");
        let error = Inputs::check(&ports, vec![x(1)], 4).unwrap_err();
        assert_eq!(error.message, "`inputs.v` is missing, expected FP32 of shape [n, 2]");
        assert_eq!(ports.map(|port| port.shape(3)), [vec![1, 2], vec![3, 2]]);
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let k = |shape: &[usize], values| tensor("k", shape, values);
        for (tensors, param, message) in [
            (vec![], "inputs.x", "`inputs.x` is missing, expected FP32 of shape [n, 1, 2]"),
            (vec![tensor("z", &[1], Values::U8(vec![1]))], "inputs.z", "no input `z`; the inputs are x, k"),
            (
                vec![tensor("x", &[1, 2], Values::F32(vec![0.0; 2]))],
                "inputs.x.shape",
                "`inputs.x.shape` is [1, 2], expected [n, 1, 2]",
            ),
            (
                vec![x(1), k(&[1, 1], Values::I64(vec![0]))],
                "inputs.k.shape",
                "`inputs.k.shape` is [1, 1], expected [n]",
            ),
            (
                vec![x(1), k(&[1], Values::F32(vec![0.0]))],
                "inputs.k.datatype",
                "`inputs.k.datatype` is FP32, expected INT64 or UINT64 or BYTES",
            ),
            (
                vec![x(2), k(&[1], Values::I64(vec![0]))],
                "inputs.k.shape",
                "`inputs.k.shape` is [1], expected as many rows as `x`, 2",
            ),
            (vec![x(5)], "inputs.x.shape", "`inputs.x.shape` is 5 rows, expected 1 to 4 rows"),
        ] {
            let error = Inputs::check(&ports(), tensors, 4).unwrap_err();
            assert_eq!((error.param.as_deref(), error.message.as_str()), (Some(param), message));
        }
    }
}
