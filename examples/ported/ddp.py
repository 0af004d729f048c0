"""Digits with sorix_dist: sorix-dist run -n 2 ddp.py"""

import argparse
import os

import numpy as np
import sorix_dist as torch
import sorix_dist.distributed as dist
import sorix_dist.nn as nn
import sorix_dist.nn.functional as F
from sorix_dist import DistributedDataParallel as DDP
from sorix_dist.utils.data import DataLoader, Dataset
from sorix_dist.utils.data.distributed import DistributedSampler


class Digits(Dataset):
    def __init__(self, train=True):
        data = np.load("examples/data/digits.npz")
        part = slice(None, 1500) if train else slice(1500, None)
        self.images = torch.from_numpy(data["images"][part].reshape(-1, 1, 8, 8)).float() / 16
        self.labels = torch.from_numpy(data["labels"][part]).long()
        self.train = train

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        image = self.images[i]
        if self.train:  # random shift by one pixel
            dx, dy = torch.randint(0, 3, (2,)).tolist()
            image = F.pad(image, (1, 1, 1, 1))[:, dy : dy + 8, dx : dx + 8]
        return image, self.labels[i]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.fc = nn.Linear(32 * 2 * 2, 10)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc(torch.flatten(x, 1))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--checkpoint", default="digits.pt")
    args = parser.parse_args()
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(0)
    train_set, test_set = Digits(), Digits(train=False)
    sampler = DistributedSampler(train_set, shuffle=True)
    train_loader = DataLoader(train_set, batch_size=128, sampler=sampler, num_workers=2)
    test_loader = DataLoader(test_set, batch_size=128, sampler=DistributedSampler(test_set, shuffle=False))
    model = DDP(Net())
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 20))
    start = 0
    if os.path.exists(args.checkpoint):
        state = torch.load(args.checkpoint, map_location="cpu")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
        start = state["epoch"] + 1
    for epoch in range(start, args.epochs):
        sampler.set_epoch(epoch)
        model.train()
        for images, labels in train_loader:
            optimizer.zero_grad(set_to_none=True)
            loss = F.cross_entropy(model(images), labels)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
        model.eval()
        counts = torch.zeros(2)
        with torch.no_grad():
            for images, labels in test_loader:
                correct = (model(images).argmax(dim=1) == labels).sum()
                counts += torch.tensor([correct.item(), len(labels)])
        dist.all_reduce(counts)
        if rank == 0:
            print(f"epoch {epoch}: loss {loss.item():.3f}, accuracy {counts[0] / counts[1]:.3f}")
            state = {"model": model.module.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save({**state, "scheduler": scheduler.state_dict(), "epoch": epoch}, args.checkpoint)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
