//! Where a graph says that its weights lie. ONNX keeps large tensors in files beside the graph, as a name, an offset
//! and a length; these are read here, so that a file too short for a tensor is told in our words before the runtime
//! meets it. Wherever a tensor may be, such a name may be as well: in the attributes of nodes, the graphs and functions that
//! these hold, among sparse tensors. All of them are found.
//!
//! Protobuf is walked by hand, as far as this needs, by the field numbers of onnx.proto.

/// Graphs within graphs, at most: protobuf reads no more than a hundred messages within one another, and a graph within a
/// node's attribute is three.
const MOST_DEPTH: usize = 34;

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
    /// Where in the graph the tensor is, where it is no initializer of the whole.
    pub place: Option<String>,
}

/// The tensors of a graph that lie in other files. `None`: the bytes are not an ONNX graph, or not all of it.
pub fn read(model: &[u8]) -> Option<Vec<External>> {
    let mut found = Found(Vec::new());
    for graph in within(model, 7)? {
        found.graph(graph, None, MOST_DEPTH)?;
    }
    for training in within(model, 20)? {
        for graph in within(training, 1)?.into_iter().chain(within(training, 2)?) {
            found.graph(graph, Some("the training"), MOST_DEPTH)?;
        }
    }
    for function in within(model, 25)? {
        let place = format!("the function `{}`", text(function, 1)?);
        for attribute in within(function, 11)? {
            found.attribute(attribute, &place, MOST_DEPTH)?;
        }
        found.nodes(function, 7, MOST_DEPTH)?;
    }
    Some(found.0)
}

/// What was found so far.
struct Found(Vec<External>);

// === impl Found ===

impl Found {
    /// A graph, which may hold graphs down to this depth. `None`, here and below: it is no whole graph.
    fn graph(&mut self, graph: &[u8], place: Option<&str>, depth: usize) -> Option<()> {
        let depth = depth.checked_sub(1)?;
        for tensor in within(graph, 5)? {
            self.tensor(tensor, place)?;
        }
        for sparse in within(graph, 15)? {
            self.sparse(sparse, place.unwrap_or("the sparse initializers"))?;
        }
        self.nodes(graph, 1, depth)
    }

    /// The nodes in this field of a graph or a function.
    fn nodes(&mut self, holder: &[u8], field: u64, depth: usize) -> Option<()> {
        for node in within(holder, field)? {
            let place = place_of(node)?;
            for attribute in within(node, 5)? {
                self.attribute(attribute, &place, depth)?;
            }
        }
        Some(())
    }

    /// An attribute: a tensor, a graph, or many of either.
    fn attribute(&mut self, attribute: &[u8], of: &str, depth: usize) -> Option<()> {
        let place = format!("the attribute `{}` of {of}", text(attribute, 1)?);
        for tensor in within(attribute, 5)?.into_iter().chain(within(attribute, 10)?) {
            self.tensor(tensor, Some(&place))?;
        }
        for sparse in within(attribute, 22)?.into_iter().chain(within(attribute, 23)?) {
            self.sparse(sparse, &place)?;
        }
        for graph in within(attribute, 6)?.into_iter().chain(within(attribute, 11)?) {
            self.graph(graph, Some(&place), depth)?;
        }
        Some(())
    }

    /// A sparse tensor: its values and their places.
    fn sparse(&mut self, sparse: &[u8], place: &str) -> Option<()> {
        for tensor in within(sparse, 1)?.into_iter().chain(within(sparse, 2)?) {
            self.tensor(tensor, Some(place))?;
        }
        Some(())
    }

    /// A tensor, which may lie in another file.
    fn tensor(&mut self, tensor: &[u8], place: Option<&str>) -> Option<()> {
        let entries = within(tensor, 13)?;
        if entries.is_empty() {
            return Some(());
        }
        let place = place.map(str::to_owned);
        let mut external = External { tensor: text(tensor, 8)?, place, ..External::default() };
        for entry in &entries {
            let value = text(entry, 2)?;
            match text(entry, 1)?.as_str() {
                "location" => external.file = value,
                "offset" => external.offset = value.parse().ok()?,
                "length" => external.length = value.parse().ok()?,
                _ => {}
            }
        }
        self.0.push(external);
        Some(())
    }
}

/// How a node is called: by its name where it has one, and what it does.
fn place_of(node: &[u8]) -> Option<String> {
    let (name, operator) = (text(node, 3)?, text(node, 4)?);
    Some(if name.is_empty() {
        format!("a node `{operator}`")
    } else {
        format!("the node `{name}` (`{operator}`)")
    })
}

/// The last value of a text field, empty where there is none.
fn text(message: &[u8], field: u64) -> Option<String> {
    Some(String::from_utf8_lossy(within(message, field)?.last().unwrap_or(&&[][..])).into_owned())
}

/// Every value of a field that has a length.
fn within(mut message: &[u8], wanted: u64) -> Option<Vec<&[u8]>> {
    let mut found = Vec::new();
    while !message.is_empty() {
        // A reader of 32 bits would leave the others out and see another field.
        let key = varint(&mut message).filter(|&key| key <= u32::MAX.into())?;
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
            place: None,
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
    /// A field of bytes, the length always in three bytes.
    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        let length = [0, 7, 14].map(|shift| (bytes.len() >> shift) as u8 & 0x7f);
        [&[number << 3 | 2, length[0] | 0x80, length[1] | 0x80, length[2]], bytes].concat()
    }

    #[test]
    fn a_field_is_seen_however_its_number_is_written() {
        let entry = [field(1, b"location"), field(2, b"x.bin")].concat();
        let tensor = field(5, &[field(8, b"w"), field(13, &entry)].concat());
        let model = field(7, &tensor);
        assert_eq!((model[0], &read(&model).unwrap()[0].file), (0x3a, &"x.bin".to_owned()));
        // In more bytes than it takes, it is the same number.
        let long = [&[0xba, 0x00], &model[1..]].concat();
        assert_eq!(read(&long), read(&model));
        // With a bit above the 32 that others read.
        let high = [&[0xba, 0x80, 0x80, 0x80, 0x10], &model[1..]].concat();
        assert_eq!(read(&high), None);
    }

    #[test]
    fn graphs_within_graphs_are_walked_to_the_depth_that_is_read() {
        let tensor = [field(8, b"w"), field(13, &field(1, b"x"))].concat();
        let nested = |depth: usize| {
            let mut graph = field(5, &tensor);
            for _ in 0..depth {
                graph = field(1, &field(5, &field(6, &graph)));
            }
            field(7, &graph)
        };
        let found = read(&nested(MOST_DEPTH - 1)).unwrap();
        assert_eq!(found[0].place.as_deref(), Some("the attribute `` of a node ``"));
        assert_eq!(read(&nested(MOST_DEPTH)), None);
        assert_eq!(read(&nested(1000)), None);
    }
}
