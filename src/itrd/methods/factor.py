"""FT: a student's translator matches the factors that a paraphraser finds in the teacher's last map."""

from __future__ import annotations

from torch import Tensor, nn

from itrd.errors import UserError
from itrd.methods.attention import attention
from itrd.methods.base import Batch, FirstStage, Method, Setup
from itrd.methods.functional import mean_square, pool_to_match
from itrd.methods.stages import check_epochs
from itrd.models.base import Outputs


class FT(Method):
    """Factor transfer (Kim, Park, Kwak, NeurIPS 2018, arXiv 1802.04977).

    Reads the last maps F_s (B, C_s, H, W), F_t (B, C_t, H', W'). Factors have c = int(C_t k) channels.

    First stage, ``init_epochs`` epochs over the :class:`Paraphraser` alone, everything else in eval mode:

        L = mean over elements of (decoder(encoder(F_t)) - F_t)^2.

    Second stage, the paraphraser frozen. With f_s = translator(F_s), f_t = encoder(F_t), the larger of the
    two average-pooled to the other's height,

        phi(f) = v / ||v||,  v_hw = mean_c f_chw^2   (per sample),      L = mean over elements |phi(f_s) - phi(f_t)|.

    Where the published benchmark code, which this follows, differs from the paper:
        * the paper normalises the whole factor; here its squares are first averaged over the channels, as in
          AT, so only the places of the activation are compared;
        * mean of absolute differences instead of the p-norm of the difference; weight 200;
        * a wide ResNet's last map is a raw sum, before batch norm and activation;
        * the first stage runs at learning rate 0.01 if the student is a resnet* or a wrn*, and at the run's
          initial rate for all others (also for ResNet50).

    Degenerate input: as in AT, a factor that is zero (||v|| < 1e-12) has phi = 0 with zero gradient. No
    gradient is collected for the frozen paraphraser.

    Args:
        k: channels of the factors as a part of the teacher's channels, > 0.
        init_epochs: length of the first stage; 0 leaves it out.
    """

    name = "factor"
    title = "FT"
    paper = "Kim, Park, Kwak, NeurIPS 2018, arXiv 1802.04977"
    formula = "L = mean |phi(translator(F_s)) - phi(encoder(F_t))|,  phi(f) = vec(mean_c f_c^2) / ||.||"
    reads = frozenset({"maps"})
    relates_samples = False
    weight = 200.0

    translator: Translator | None
    paraphraser: Paraphraser | None

    def __init__(self, *, k: float = 0.5, init_epochs: int = 30) -> None:
        super().__init__()
        if not k > 0:
            raise UserError(f"factor: k must be positive, got {k}")
        self.k = k
        self.init_epochs = check_epochs(self.name, "init_epochs", init_epochs)
        self.translator = None
        self.paraphraser = None
        self._learning_rate: float | None = None

    def setup(self, setup: Setup) -> None:
        """Build translator and paraphraser; note the first stage's learning rate."""
        c_s, c_t = setup.student.maps[-1].shape[1], setup.teacher.maps[-1].shape[1]
        c = int(c_t * self.k)
        if c < 1:
            raise UserError(f"factor: k = {self.k} leaves no channel of the teacher's {c_t}")
        self.paraphraser = Paraphraser(c_t, c)
        self.translator = Translator(c_s, c)
        arch = getattr(setup.student_net, "arch", "")
        self._learning_rate = 0.01 if arch.startswith(("resnet", "wrn")) else None
        self.train(self.training)

    def first_stage_only(self) -> tuple[nn.Module, ...]:
        """Return the paraphraser."""
        return () if self.paraphraser is None else (self.paraphraser,)

    def first_stage(self) -> FirstStage | None:
        """Train the paraphraser alone."""
        if self.init_epochs == 0:
            return None
        return FirstStage((self._modules_built()[0],), self.init_epochs, self._learning_rate)

    def first_stage_connect(self, student: Outputs, teacher: Outputs) -> tuple[Outputs, Outputs]:
        """Put the paraphrase of the teacher's last map in the place of the student's maps."""
        paraphraser, _ = self._modules_built()
        f_t = teacher.maps[-1]
        paraphrase = paraphraser.decoder(paraphraser.encoder(f_t))
        return student._replace(maps=(paraphrase,)), teacher._replace(maps=(f_t,))

    def first_stage_terms(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Return ``{"factor": scalar}`` for the paraphrase and the map."""
        return {"factor": mean_square(student.maps[0] - teacher.maps[0])}

    def connect(self, student: Outputs, teacher: Outputs) -> tuple[Outputs, Outputs]:
        """Replace the maps by the factors."""
        paraphraser, translator = self._modules_built()
        f_s, f_t = translator.encoder(student.maps[-1]), paraphraser.encoder(teacher.maps[-1])
        return student._replace(maps=(f_s,)), teacher._replace(maps=(f_t,))

    def terms(self, student: Outputs, teacher: Outputs, batch: Batch) -> dict[str, Tensor]:
        """Return ``{"factor": scalar}`` for factors (B, c, H, W), (B, c, H', W')."""
        return {"factor": factor_loss(student.maps[0], teacher.maps[0])}

    def _modules_built(self) -> tuple[Paraphraser, Translator]:
        if self.paraphraser is None or self.translator is None:
            raise UserError("factor: call setup() with example outputs before the first loss")
        return self.paraphraser, self.translator


class Paraphraser(nn.Module):
    """Autoencoder of the teacher's maps: (B, channels, H, W) to (B, factors, H, W) and back.

    3x3 convolutions channels -> channels -> factors -> factors, then transposed ones back, each with bias and
    followed by a leaky ReLU with slope 0.1, the last one too.
    """

    def __init__(self, channels: int, factors: int) -> None:
        super().__init__()
        self.encoder = _encoder(channels, factors, normalized=False)
        layers: list[nn.Module] = []
        for c_in, c_out in ((factors, factors), (factors, channels), (channels, channels)):
            convolution = nn.ConvTranspose2d(c_in, c_out, 3, padding=1)
            layers += [convolution, nn.Identity(), nn.LeakyReLU(0.1)]
        self.decoder = nn.Sequential(*layers)


class Translator(nn.Module):
    """The student's part: the paraphraser's encoder with a batch norm before each leaky ReLU."""

    def __init__(self, channels: int, factors: int) -> None:
        super().__init__()
        self.encoder = _encoder(channels, factors, normalized=True)


def _encoder(channels: int, factors: int, normalized: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for c_in, c_out in ((channels, channels), (channels, factors), (factors, factors)):
        norm = nn.BatchNorm2d(c_out) if normalized else nn.Identity()
        layers += [nn.Conv2d(c_in, c_out, 3, padding=1), norm, nn.LeakyReLU(0.1)]
    return nn.Sequential(*layers)


def factor_loss(f_s: Tensor, f_t: Tensor) -> Tensor:
    """L of factors (B, c, H, W), (B, c, H', W'); scalar."""
    f_s, f_t = pool_to_match(f_s, f_t)
    return (attention(f_s) - attention(f_t)).abs().mean()
