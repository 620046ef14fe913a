//! Whole networks: a small convolutional UNet of the graph's own ops, and the transformer against its own forward pass.

use super::*;

/// Group norm by what there is: a layer norm over each group's channels and pixels, then a scale and a shift a channel.
fn group_norm(case: &mut Case<'_>, name: &str, x: ValueId, groups: usize, dims: [usize; 4]) -> ValueId {
    let [n, c, h, w] = dims;
    let x = case.reshape(&format!("{name}.groups"), &[n, groups, c / groups * h * w], x);
    let x = case.add(&format!("{name}.normalised"), Op::LayerNorm { epsilon: 1e-5 }, &[x]);
    let x = case.reshape(&format!("{name}.image"), &dims, x);
    let scale = case.parameter(&format!("{name}.weight"), &[c, 1, 1]);
    let shift = case.parameter(&format!("{name}.bias"), &[c, 1, 1]);
    let x = case.add(&format!("{name}.scaled"), Op::Mul, &[x, scale]);
    case.add(&format!("{name}.shifted"), Op::Add, &[x, shift])
}

/// Down by a strided convolution, up by nearest neighbours, a skip between, group norms and SiLUs.
#[test]
fn a_small_unet() {
    check("a UNet", &[1, 2, 6, 6], |case, x| {
        let (down, same) = (Stride { step: 2, padding: 1 }, Stride { step: 1, padding: 1 });
        let weight = case.parameter("in.weight", &[4, 2, 3, 3]);
        let skip = case.add("in", Op::Conv(same), &[x, weight]);
        let h = group_norm(case, "norm1", skip, 2, [1, 4, 6, 6]);
        let gate = case.add("gate", Op::Sigmoid, &[h]);
        let h = case.add("silu", Op::Mul, &[h, gate]);
        let weight = case.parameter("down.weight", &[6, 4, 3, 3]);
        let h = case.add("down", Op::Conv(down), &[h, weight]);
        let h = group_norm(case, "norm2", h, 3, [1, 6, 3, 3]);
        let twice = case.indices("twice", &[6], &[0, 0, 1, 1, 2, 2]);
        let h = case.add("up.rows", Op::Gather { axis: 2 }, &[h, twice]);
        let h = case.add("up", Op::Gather { axis: 3 }, &[h, twice]);
        let h = case.add("joined", Op::Concat { axis: 1 }, &[h, skip]);
        let weight = case.parameter("out.weight", &[2, 10, 3, 3]);
        case.add("y", Op::Conv(same), &[h, weight])
    });
}

fn network(height: usize, width: usize, patch: usize, learn_sigma: bool) -> (ModelConfig, Vec<Plan>) {
    let local = |side| Window::local(side).unwrap();
    let windows = vec![local(3), Window::Global, local(5), local(3)];
    let config = ModelConfig {
        channels: 2,
        height: height * patch,
        width: width * patch,
        patch,
        hidden: 16,
        depth: windows.len(),
        heads: 2,
        mlp_ratio: 2,
        classes: 3,
        learn_sigma,
        windows,
    };
    config.validate().unwrap();
    // Tiles that divide the grid and tiles that do not, and two layers that share theirs.
    let tiles = |height, width| Plan::Tiles(Tile { height, width });
    (config, vec![tiles(2, 2), Plan::Dense, tiles(3, 2), tiles(2, 2)])
}

#[test]
fn the_networks_jacobian_is_autograds() {
    for (height, width, patch, learn_sigma) in [(6, 4, 1, false), (4, 5, 2, true)] {
        let (config, plans) = network(height, width, patch, learn_sigma);
        let flat = parameters(&config);
        let net = Geometry::planned(&config, |_, _| Plan::Dense, Kind::Float, Device::Cpu).bind(&flat);
        let _draws = crate::testing::seeded(6);
        let image = sizes(&[1, config.channels, config.height, config.width]);
        let x = Tensor::randn(&image[..], CPU).set_requires_grad(true);
        let (t, y) = (Tensor::from_slice(&[412.75f32]), Tensor::from_slice(&[1i64]));
        let mean = net.forward(&x, &t, &y).narrow(1, 0, config.channels as i64);
        let expected = jacobian(&mean, &x);
        let mut given = by_name(&config, &flat);
        given.extend([("x", x.detach()), ("t", t), ("y", y)].map(|(name, value)| (name.to_owned(), value)));
        let vectors = Tensor::randn([K, config.elements() as i64], CPU);
        let shape = sizes(&[K as usize, config.channels, config.height, config.width]);
        given.insert("vectors".to_owned(), vectors.view(&shape[..]));
        let jvp = evaluate(&insides::jvp(&config, &plans).unwrap(), &given).unwrap().remove(0);
        let error = difference(&jvp.reshape([K, -1]), &vectors.matmul(&expected.transpose(0, 1)));
        assert!(error < 2e-5, "forward: {error}");
        let vjp = evaluate(&insides::vjp(&config, &plans).unwrap(), &given).unwrap().remove(0);
        let error = difference(&vjp.reshape([K, -1]), &vectors.matmul(&expected));
        assert!(error < 2e-5, "reverse: {error}");
    }
}
