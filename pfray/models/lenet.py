"""LeNet-5 with ReLU and max pooling (LeCun et al. 1998), for 32x32 images."""

from __future__ import annotations

from torch import Tensor, nn


class LeNet(nn.Module):
    """``(N, in_channels, 32, 32)`` images to ``(N, num_outputs)`` logits."""

    def __init__(self, num_outputs: int = 10, in_channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, num_outputs)
        self.pool = nn.MaxPool2d(2)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu(self.conv1(x)))
        x = self.pool(self.relu(self.conv2(x))).flatten(1)
        return self.fc3(self.relu(self.fc2(self.relu(self.fc1(x)))))


def lenet(num_outputs: int = 10, in_channels: int = 3) -> nn.Module:
    return LeNet(num_outputs, in_channels)
