"""Trainable maps from a student's feature map to the shape of a teacher's."""

from __future__ import annotations

from torch import Size, Tensor, nn


class ConvReg(nn.Module):
    """Convolution and batch norm (and ReLU) from a student's map to the teacher's channels and size.

    The first rule that fits the heights H_s, H_t chooses the convolution, always with a bias:

        H_s = 2 H_t     3x3, stride 2, padding 1;
        2 H_s = H_t     transposed 4x4, stride 2, padding 1;
        H_s >= H_t      (1 + H_s - H_t) x (1 + W_s - W_t), stride 1, no padding (1x1 for equal sizes);
        otherwise       1x1, and the map is resized to (H_t, W_t) before it: bilinear, corners not aligned.

    The benchmark code of CRD chooses in the same way, but for the last branch, where it raises a ``TypeError``
    by mistake, and but for maps that are not square, whose widths must fit the rule here, too. The gradient of
    the convolution's bias is zero up to rounding, because the batch norm removes it.

    Args:
        student_shape: (B, C_s, H_s, W_s).
        teacher_shape: (B, C_t, H_t, W_t).
        relu: end with a ReLU.
    """

    def __init__(self, student_shape: Size, teacher_shape: Size, relu: bool = True) -> None:
        super().__init__()
        _, c_s, h_s, w_s = student_shape
        _, c_t, h_t, w_t = teacher_shape
        self.conv: nn.Conv2d | nn.ConvTranspose2d
        self.resize: nn.Module = nn.Identity()
        if (h_s, w_s) == (2 * h_t, 2 * w_t):
            self.conv = nn.Conv2d(c_s, c_t, 3, stride=2, padding=1)
        elif (2 * h_s, 2 * w_s) == (h_t, w_t):
            self.conv = nn.ConvTranspose2d(c_s, c_t, 4, stride=2, padding=1)
        elif h_s >= h_t and w_s >= w_t:
            self.conv = nn.Conv2d(c_s, c_t, (1 + h_s - h_t, 1 + w_s - w_t))
        else:
            self.resize = nn.Upsample((h_t, w_t), mode="bilinear")
            self.conv = nn.Conv2d(c_s, c_t, 1)
        self.bn = nn.BatchNorm2d(c_t)
        self.relu = nn.ReLU() if relu else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C_s, H_s, W_s) to (B, C_t, H_t, W_t)."""
        return self.relu(self.bn(self.conv(self.resize(x))))
