//! Where a graph says that its weights lie. ONNX keeps large tensors in files beside the graph, as a name, an offset
//! and a length; these are read here, so that a file too short for a tensor is told in our words before the runtime
//! meets it. Protobuf is walked by hand, as far as this needs: ModelProto.graph is field 7, GraphProto.initializer
//! field 5, TensorProto.name field 8 and external_data field 13, whose entries have key 1 and value 2.

/// A tensor of a graph that lies in another file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct External {
    /// Name of the tensor.
    pub tensor: String,
    /// Name of the file.
    pub file: String,
    /// Where it begins in the file, in bytes.
    pub offset: u64,
    /// Its bytes; 0 where the graph leaves it to the tensor's shape.
    pub length: u64,
}

/// The tensors of a graph that lie in other files. `None`: the bytes are not an ONNX graph, or not all of it.
pub fn read(model: &[u8]) -> Option<Vec<External>> {
    let mut externals = Vec::new();
    for graph in within(model, 7)? {
        for tensor in within(graph, 5)? {
            externals.extend(external(tensor)?);
        }
    }
    Some(externals)
}

/// The tensor, if it lies in another file.
fn external(tensor: &[u8]) -> Option<Option<External>> {
    let entries = within(tensor, 13)?;
    let mut external = External { tensor: text(tensor, 8)?, ..External::default() };
    for entry in &entries {
        let value = text(entry, 2)?;
        match text(entry, 1)?.as_str() {
            "location" => external.file = value,
            "offset" => external.offset = value.parse().ok()?,
            "length" => external.length = value.parse().ok()?,
            _ => {}
        }
    }
    Some((!entries.is_empty()).then_some(external))
}

/// The last value of a text field, empty where there is none.
fn text(message: &[u8], field: u64) -> Option<String> {
    Some(String::from_utf8_lossy(within(message, field)?.last().unwrap_or(&&[][..])).into_owned())
}

/// Every value of a field that has a length.
fn within(mut message: &[u8], wanted: u64) -> Option<Vec<&[u8]>> {
    let mut found = Vec::new();
    while !message.is_empty() {
        let key = varint(&mut message)?;
        let length = match key & 7 {
            0 => varint(&mut message).map(|_| 0)?,
            1 => 8,
            2 => usize::try_from(varint(&mut message)?).ok()?,
            5 => 4,
            _ => return None,
        };
        let (value, rest) = message.split_at_checked(length)?;
        message = rest;
        if key == wanted << 3 | 2 {
            found.push(value);
        }
    }
    Some(found)
}

/// Seven bits a byte, low first; the last byte has no high bit.
fn varint(message: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = message.split_first()?;
        *message = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::onnx::{External as Tensor, Model};

    fn graph() -> Vec<u8> {
        let externals = vec![
            Tensor { name: "half", file: "weights.bin", len: 1 },
            Tensor { name: "long", file: "weights.bin", len: 300 },
        ];
        Model { externals, ..Model::default() }.encode()
    }

    #[test]
    fn every_external_tensor_is_found() {
        let external = |tensor: &str, length| External {
            tensor: tensor.to_owned(),
            file: "weights.bin".to_owned(),
            offset: 0,
            length,
        };
        assert_eq!(read(&graph()).unwrap(), [external("half", 4), external("long", 1200)]);
        assert_eq!(read(&Model::default().encode()).unwrap(), []);
    }

    #[test]
    fn what_is_cut_or_no_protobuf_is_no_graph() {
        let graph = graph();
        assert_eq!(read(&graph[..graph.len() / 2]), None);
        for bytes in [&b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"[..], b"hello", b"\x3a\x7f", b"\x3b"] {
            assert_eq!(read(bytes), None, "{bytes:?}");
        }
    }
}
