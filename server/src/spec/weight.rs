//! How much memory the answer of an order takes until its client has it: about, and before anything is drawn. What it is
//! in fact is known when it is written.

use super::{File, Order};
use crate::encode::Encoding;
use crate::extract::Form;
use crate::model::Card;

/// Bytes of what tells about an image, beside its file or in it.
const NOTE: usize = 1024;

// === impl Order, for its answer ===

impl Order {
    /// Bytes of its answer, about; of a stream what waits at a time, the images that are done among it.
    pub fn answer_bytes(&self, card: &Card) -> usize {
        let (count, elements) = (self.seeds.len(), card.shape().iter().product::<usize>());
        let values = elements * size_of::<f32>();
        let file = match self.output.file {
            File::Arrays(_) => values + self.watch.bytes(1, elements),
            File::Picture(encoding) => {
                let [width, height] = self.picture_size(card);
                // Of an enlarged picture rows are repeated, which files without loss have once.
                let repeated = if matches!(encoding, Encoding::Jpeg { .. }) { 1 } else { self.output.scale };
                width * height * card.colour.channels() / repeated
            }
        };
        let in_json = (file + NOTE) * 4 / 3 + NOTE;
        match self.output.form {
            Form::Json => count * in_json,
            Form::Events => count * values + in_json,
            _ => count * (file + NOTE),
        }
    }
}
