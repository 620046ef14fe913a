//! The few words of ONNX that the start-up probe and the tests need: a graph of elementwise nodes, written as
//! protobuf by hand. The models themselves come from the trainer; nothing here reads or changes them.

/// Element types, by ONNX's numbers.
#[derive(Debug, Clone, Copy)]
pub enum Element {
    /// 32-bit float.
    F32 = 1,
    /// 64-bit integer.
    I64 = 7,
}

/// A graph input or output: a name, a type, and a shape whose `None` is the batch dimension `n`.
#[derive(Debug, Clone)]
pub struct Port {
    /// Name.
    pub name: &'static str,
    /// Element type.
    pub element: Element,
    /// Dimensions.
    pub shape: Vec<Option<u64>>,
}

/// A node: operator, inputs, output.
#[derive(Debug, Clone, Copy)]
pub struct Node {
    /// Operator, e.g. `Mul`.
    pub op: &'static str,
    /// Names of the inputs.
    pub inputs: [&'static str; 2],
    /// Name of the output.
    pub output: &'static str,
}

/// A one-dimensional f32 initializer in an external file, at offset 0.
#[derive(Debug, Clone, Copy)]
pub struct External {
    /// Name of the tensor.
    pub name: &'static str,
    /// Name of the file beside the graph.
    pub file: &'static str,
    /// Number of values.
    pub len: u64,
}

/// A whole model: IR version 8, opset 17.
#[derive(Debug, Clone, Default)]
pub struct Model {
    /// Inputs of the graph.
    pub inputs: Vec<Port>,
    /// Outputs of the graph.
    pub outputs: Vec<Port>,
    /// Nodes, in order.
    pub nodes: Vec<Node>,
    /// Initializers.
    pub externals: Vec<External>,
}

// === impl Model ===

impl Model {
    /// The bytes of a `ModelProto`.
    pub fn encode(&self) -> Vec<u8> {
        let mut graph = Message::default();
        for node in &self.nodes {
            let mut m = Message::default();
            node.inputs.iter().for_each(|input| m.text(1, input));
            m.text(2, node.output);
            m.text(4, node.op);
            graph.message(1, &m);
        }
        graph.text(2, "windowpane");
        for tensor in &self.externals {
            let mut m = Message::default();
            m.number(1, tensor.len);
            m.number(2, Element::F32 as u64);
            m.text(8, tensor.name);
            for (key, value) in
                [("location", tensor.file.to_owned()), ("length", (4 * tensor.len).to_string())]
            {
                let mut entry = Message::default();
                entry.text(1, key);
                entry.text(2, &value);
                m.message(13, &entry);
            }
            m.number(14, 1);
            graph.message(5, &m);
        }
        self.inputs.iter().for_each(|port| graph.message(11, &port.encode()));
        self.outputs.iter().for_each(|port| graph.message(12, &port.encode()));
        let mut opset = Message::default();
        opset.text(1, "");
        opset.number(2, 17);
        let mut model = Message::default();
        model.number(1, 8);
        model.message(7, &graph);
        model.message(8, &opset);
        model.0
    }
}

// === impl Port ===

impl Port {
    fn encode(&self) -> Message {
        let mut shape = Message::default();
        for dim in &self.shape {
            let mut m = Message::default();
            match dim {
                Some(size) => m.number(1, *size),
                None => m.text(2, "n"),
            }
            shape.message(1, &m);
        }
        let mut tensor = Message::default();
        tensor.number(1, self.element as u64);
        tensor.message(2, &shape);
        let mut kind = Message::default();
        kind.message(1, &tensor);
        let mut port = Message::default();
        port.text(1, self.name);
        port.message(2, &kind);
        port
    }
}

/// A protobuf message under construction.
#[derive(Debug, Default)]
struct Message(Vec<u8>);

// === impl Message ===

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn number(&mut self, field: u64, value: u64) {
        self.varint(field << 3);
        self.varint(value);
    }

    fn bytes(&mut self, field: u64, bytes: &[u8]) {
        self.varint(field << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn text(&mut self, field: u64, text: &str) {
        self.bytes(field, text.as_bytes());
    }

    fn message(&mut self, field: u64, message: &Self) {
        self.bytes(field, &message.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints_are_seven_bits_a_byte_low_first() {
        let mut m = Message::default();
        m.number(1, 300);
        m.text(2, "ab");
        // Field 1 as varint 300 = 0b10_0101100, field 2 as two bytes (protobuf's own documentation has the first).
        assert_eq!(m.0, [0x08, 0xAC, 0x02, 0x12, 2, b'a', b'b']);
    }
}
